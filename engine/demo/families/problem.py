"""A problem: a conversation whose last turn asks, its tools, and what counts as a right answer. Draws nothing."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engine.demo.families.stories import is_story

Role = Literal["system", "user", "assistant", "tool"]

CALL, END_CALL = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation: who said what. An assistant's tool calls are its content, in Hermes form."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A prompt with one right answer; a story has many, of which `answer` is an example."""

    task: str
    prompt: str
    """What the last turn says."""
    answer: str
    names: tuple[str, ...] = ()
    things: tuple[str, ...] = ()
    story: Literal["", "short", "long"] = ""
    """The grammar that the answer must follow; about any names and things where none are given."""
    before: tuple[Turn, ...] = ()
    """The turns before the last."""
    role: Role = "user"
    """Whose the last turn is: the user's or a tool's."""
    tools: tuple[str, ...] = ()
    """The functions that may be called, each as the JSON of OpenAI's `tools`."""
    schema: str = ""
    """The JSON Schema that the answer must fit, as JSON; empty of an answer that is no form."""
    yes: float | None = None
    """The probability that the answer is `Yes`, for a question whose truth is drawn; `answer` is that draw."""

    @property
    def key(self) -> str:
        """What decides whether a problem is held out: all that is asked."""
        return "\n".join([*(turn.content for turn in self.before), self.prompt])

    def check(self, text: str) -> bool:
        """Whether `text` answers the prompt, white space around it aside.

        Stories are parsed, JSON and tool calls compared as values. Where the truth is drawn, the likelier answer is
        right.
        """
        text = text.strip()
        if self.story:
            return is_story(text, self.names, self.things, is_long=self.story == "long")
        if self.yes is not None:
            return text in ({"Yes"} if self.yes >= 0.5 else set()) | ({"No"} if self.yes <= 0.5 else set())
        return text == self.answer or same_values(text, self.answer)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns up to the one that asks."""
        return (*self.before, Turn(self.role, self.prompt))

    def messages(self, shots: Sequence["Problem"] = ()) -> list[dict[str, Any]]:
        """The conversation as OpenAI's `messages`, solved problems first; tool calls and their results by id."""
        solved = (turn for shot in shots for turn in (*shot.turns, Turn("assistant", shot.answer)))
        return _messages((*solved, *self.turns))


def same_values(text: str, answer: str) -> bool:
    """Whether both are JSON, or tool calls, of the same values."""
    if answer.startswith(CALL):
        return parsed_calls(text) == parsed_calls(answer)
    if not answer.startswith("{"):
        return False
    try:
        given = json.loads(text)
    except ValueError:
        return False
    return bool(given == json.loads(answer))


def parsed_calls(text: str) -> list[Mapping[str, Any]] | None:
    """The calls of an answer that is nothing but calls in Hermes form; None for any other text."""
    parts = text.split(CALL)
    if len(parts) < 2 or parts[0]:
        return None
    calls: list[Mapping[str, Any]] = []
    for part in parts[1:]:
        body, mark, rest = part.partition(END_CALL)
        if not mark or rest.strip():
            return None
        try:
            call = json.loads(body)
        except ValueError:
            return None
        if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
            return None
        calls.append(call)
    return calls


def written_calls(calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Calls (name, arguments) in Hermes form."""
    return "\n".join(
        f"{CALL}\n{json.dumps({'name': name, 'arguments': arguments})}\n{END_CALL}" for name, arguments in calls
    )


def _messages(turns: Iterable[Turn]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    ids: Iterator[str] = iter(())
    for turn in turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.role == "assistant" and (calls := parsed_calls(turn.content)):
            named = [f"call_{len(messages)}_{i}" for i in range(len(calls))]
            message["content"] = None
            message["tool_calls"] = [
                {
                    "id": id_,
                    "type": "function",
                    "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])},
                }
                for id_, call in zip(named, calls, strict=True)
            ]
            ids = iter(named)
        elif turn.role == "tool":
            message["tool_call_id"] = next(ids)
        messages.append(message)
    return messages
