"""Turns texts and conversations into token ids, with a checkpoint's own tokenizer and chat template.

Both may run forever: a template is a program, and a tokenizer has regular expressions. So `server.jobs.worker` runs
this module in a process that can be killed; it imports neither the engine nor torch, and knows nothing of HTTP.
"""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, zip_longest
from typing import Any, TypedDict

from jinja2 import TemplateError
from tokenizers import Tokenizer as Backend
from transformers.utils.chat_template_utils import render_jinja_template

from server.text.hermes import CLOSE, OPEN, RESULT_ROLE, TAGS, as_text
from server.text.marks import Marks
from server.text.turns import changed, with_objects


class Unreadable(Exception):
    """A conversation that cannot be rendered. The message is a predicate, to which the caller adds the subject."""


class TooLong(Exception):
    """A rendered conversation of more characters than allowed."""

    def __init__(self, characters: int) -> None:
        super().__init__(characters)
        self.characters = characters


class Endings(TypedDict):
    """The tokens of a conversation with several endings, in the order in which they stand."""

    before: list[int]
    """All before the ending."""
    endings: list[list[int]]
    opening: list[int]
    """Between the ending and the answer."""
    closing: list[int]
    """Behind the answer."""


class Encoder:
    """The tokenizer and chat template of one checkpoint. Not thread-safe."""

    def __init__(self, backend: str, template: str | None, variables: Mapping[str, Any]) -> None:
        """`backend`: a tokenizer in JSON. `variables`: what the template may use besides the messages."""
        self._backend = Backend.from_str(backend)
        self._template = template
        self._variables = variables
        added = self._backend.get_added_tokens_decoder()
        self._control = self._names({id_: token.content for id_, token in added.items() if token.special})
        """The special tokens."""
        self._control_of_tools = self._names(
            {id_: token.content for id_, token in added.items() if token.special or token.content in TAGS}
        )
        """The special tokens, and the tags of calls and results."""

    def encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        """The tokens of each text."""
        return [
            encoding.ids
            for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        ]

    def encode_parts(self, parts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        """The tokens of each part of one text. Special tokens go only before the first part and after the last."""
        pieces = self.encode(parts, add_special_tokens=False)
        before, behind = self._frame if add_special_tokens else ([], [])
        pieces[0] = before + pieces[0]
        pieces[-1] = pieces[-1] + behind
        return pieces

    def locate(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        """For each token that `encode` makes of a text, the number of characters before it in that text."""
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return [_ascending([start for start, _ in encoding.offsets]) for encoding in encodings]

    def converse(
        self,
        turns: list[dict[str, Any]],
        variables: Mapping[str, Any],
        *,
        tools: list[dict[str, Any]],
        add_generation_prompt: bool,
        continue_final_message: bool,
        add_special_tokens: bool,
        max_characters: int,
    ) -> list[int]:
        """The tokens of a conversation, rendered by the template. Raises Unreadable, NoObject, or TooLong.

        Tools, calls and results are the template's to write. One that does not is given them as text.
        """
        marks = Marks()
        marked, marked_tools = self._marked(turns, tools, marks)
        last = marked[-1]["content"]
        if continue_final_message:
            marked[-1]["content"] = marks.open(last)
        text: str | None = self._render(marked, marked_tools, variables, add_generation_prompt)
        if continue_final_message and text is not None:
            text = marks.cut(text, last)
        if text is None:
            raise Unreadable("does not show the last message, so that nothing can go on with it")
        rendered, literals = marks.split(text)
        if (length := sum(map(len, chain(rendered, literals)))) > max_characters:
            raise TooLong(length)
        return self._joined(self.encode_parts(rendered, add_special_tokens), literals)

    def converse_each(self, turns: list[dict[str, Any]], endings: list[str], max_characters: int) -> Endings:
        """The tokens of a conversation whose last turn ends in one of `endings`, and whose answer is still to come.

        The conversation is rendered once, and every ending is encoded alone. Raises Unreadable, NoObject, or TooLong.
        """
        marks = Marks()
        marked, _ = self._marked(turns, [], marks)
        marked[-1]["content"] += marks.put("", [(0, 0)])
        text = self._render([*marked, {"role": "assistant", "content": marks.put("", [(0, 0)])}], [], {}, False)
        rendered, literals = marks.split(text)
        if (length := sum(map(len, chain(rendered, literals))) + max(map(len, endings))) > max_characters:
            raise TooLong(length)
        places = [place for place, literal in enumerate(literals) if not literal]
        if len(places) != 2:
            raise Unreadable("does not show the last message and its answer once each")
        pieces = self.encode_parts(rendered, add_special_tokens=False)
        ending, answer = places
        control = self._control_in(turns, [])
        return {
            "before": self._joined(pieces[: ending + 1], literals[:ending]),
            "endings": [self._as_text(one, control) for one in endings],
            "opening": self._joined(pieces[ending + 1 : answer + 1], literals[ending + 1 : answer]),
            "closing": self._joined(pieces[answer + 1 :], literals[answer + 1 :]),
        }

    def _marked(
        self, turns: list[dict[str, Any]], tools: list[dict[str, Any]], marks: Marks
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Turns and tools as the template gets them, with marks for the names of control tokens in their texts."""
        control = self._control_in(turns, tools)

        def mark(text: str) -> str:
            return marks.put(text, self._spans(text, control))

        marked = changed(with_objects(turns), mark)
        marked_tools = changed(tools, mark, with_keys=True)
        if control is self._control_of_tools and not self.template_knows_tools:
            marked, marked_tools = as_text(marked, marked_tools), []
        return marked, marked_tools

    def _control_in(self, turns: list[dict[str, Any]], tools: list[dict[str, Any]]) -> "_Names":
        """The control tokens of a conversation: with tools, more of them."""
        has_tools = bool(tools) or any("tool_calls" in turn or turn["role"] == RESULT_ROLE for turn in turns)
        return self._control_of_tools if has_tools else self._control

    def _as_text(self, text: str, control: "_Names") -> list[int]:
        """The tokens of a text in which the names of control tokens are ordinary text."""
        marks = Marks()
        pieces, literals = marks.split(marks.put(text, self._spans(text, control)))
        return self._joined(self.encode_parts(pieces, add_special_tokens=False), literals)

    def _joined(self, pieces: list[list[int]], literals: list[str]) -> list[int]:
        """The tokens of pieces with literals between them, whose tokens are those of ordinary text."""
        between = [self._spelled(literal) for literal in literals]
        return list(chain(*chain(*zip_longest(pieces, between, fillvalue=[]))))

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """The special tokens that are added before a text, and after it."""
        encoding = self._backend.encode("a")
        inside = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
        return encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]

    @cached_property
    def template_knows_tools(self) -> bool:
        """Whether the template shows tools, calls in the form of `server.text.hermes`, and results. It is tried out."""
        function = {"name": "tool_to_see", "description": "", "parameters": {"type": "object", "properties": {}}}
        call = {"name": "called_tool", "arguments": {"a": 1}}
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": call}]},
            {"role": "tool", "content": "result_to_see", "tool_call_id": "1"},
        ]
        try:
            text = self._render(turns, [{"type": "function", "function": function}], {}, add_generation_prompt=True)
        except Unreadable:
            return False
        form = f'{OPEN}{{"name":"called_tool","arguments":{{"a":1}}}}{CLOSE}'
        return "tool_to_see" in text and "result_to_see" in text and form in re.sub(r"\s", "", text)

    def _render(
        self,
        turns: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        variables: Mapping[str, Any],
        add_generation_prompt: bool,
    ) -> str:
        shown: list[Any] = tools
        try:
            rendered: Any = render_jinja_template(
                conversations=[turns],
                tools=shown or None,
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                **{**self._variables, **variables},
            )
            text = str(rendered[0][0])
            text.encode()
        except TemplateError as error:  # its message comes from the template
            raise Unreadable(f"refuses this: {error!s:.200}") from None
        except Exception as error:
            raise Unreadable(f"cannot render this ({type(error).__name__})") from error
        return text

    def _normalized(self, text: str) -> str:
        normalizer = self._backend.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def _names(self, tokens: Mapping[int, str]) -> "_Names":
        names = {*tokens.values(), *map(self._normalized, tokens.values())}
        longest_first = sorted(filter(None, names), key=len, reverse=True)
        return _Names(tokens.keys(), re.compile("|".join(map(re.escape, longest_first)) or "(?!)"))

    def _spans(self, text: str, names: "_Names") -> list[tuple[int, int]]:
        """Where the tokenizer reads these tokens in a text: (start, stop) in characters, ascending.

        The regular expression comes first: most texts have no such token, and it finds that out 100 times faster.
        """
        if not (names.pattern.search(text) or names.pattern.search(self._normalized(text))):
            return []
        encoding = self._backend.encode(text, add_special_tokens=False)
        return [span for id_, span in zip(encoding.ids, encoding.offsets, strict=True) if id_ in names.ids]

    def _spelled(self, text: str) -> list[int]:
        """The tokens of a control token's name as ordinary text.

        If this is one token all the same, because it is not special or the vocabulary has the name too, the name is
        halved, and each half is encoded alone.
        """
        self._backend.encode_special_tokens = True
        try:
            [ids] = self.encode([text], add_special_tokens=False)
        finally:
            self._backend.encode_special_tokens = False
        if self._control_of_tools.ids.isdisjoint(ids) or len(text) == 1:
            return ids
        half = len(text) // 2
        return self._spelled(text[:half]) + self._spelled(text[half:])


@dataclass(frozen=True, slots=True)
class _Names:
    """Tokens that are control tokens in a conversation."""

    ids: Set[int]
    pattern: re.Pattern[str]
    """Finds the name of each, as it is written and as the tokenizer normalizes it."""


def _ascending(starts: Sequence[int]) -> list[int]:
    """The starts, made ascending: the tokenizer reports offset 0 for special tokens at the end of a text."""
    return list(accumulate(starts, max))
