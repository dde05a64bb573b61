"""Which tokens are the content's, whatever the pieces in which an answer comes: those that show a part of it."""

import asyncio
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import FinishReason, Output, Usage
from server.replies.choice import Choice
from server.replies.passage import Token
from server.replies.reasoning import ReasoningReader
from server.replies.tool_calls import Content, ToolCallReader
from tests.server.replies.test_tool_calls import PIECES, call

USAGE = Usage(prompt_tokens=1, completion_tokens=1, forwards=1, rows_computed=1)


class Spelled:
    """A passage whose token of the number n shows the nth of some texts."""

    length = stop = None

    def __init__(self, texts):
        self._texts = texts
        self._offsets = [0, *accumulate(map(len, texts))]

    def push(self, ids, logprobs, steps, *, last):
        return "".join(self._texts[id_] for id_ in ids), [Token(id_, self._offsets[id_], None) for id_ in ids]


class Blocks:
    """A stream of these blocks of tokens."""

    def __init__(self, blocks):
        self._blocks = blocks

    async def __aiter__(self):
        for number, ids in enumerate(self._blocks, 1):
            reason = FinishReason.STOP if number == len(self._blocks) else None
            yield Output(request_id="r", token_ids=tuple(ids), finish_reason=reason, usage=USAGE)

    def finish(self, reason, usage):
        pass


def shown(texts, cuts=()):
    """The content of an answer that is made of these texts, and the numbers of its tokens. `cuts`: where blocks end."""
    places = sorted({0, len(texts), *cuts})
    blocks = [list(range(*ends)) for ends in pairwise(places)] + [[]]
    choice = Choice(0, Blocks(blocks), [Spelled(texts)], reader=ToolCallReader(), reasoning=ReasoningReader())

    async def read():
        return [delta async for delta in choice.deltas()]

    deltas = asyncio.run(read())
    return "".join(delta.text for delta in deltas), [token.id for delta in deltas for token in delta.content_tokens]


def expected(texts):
    """The numbers of the tokens that show a character of the content, one by one."""
    text = "".join(texts)
    reasoning, reader = ReasoningReader(), ToolCallReader()
    _, behind = reasoning.push(text, last=True)
    contents = [part for part in reader.push(behind, last=True) if isinstance(part, Content)]
    places = {len(text) - len(behind) + place for part in contents for place in range(part.start, part.end)}
    numbers = [number for number, piece in enumerate(texts) for _ in piece]
    return sorted({numbers[place] for place in places})


@given(st.lists(st.sampled_from(["<think>", "</think>", *PIECES]), max_size=12).map("".join), st.data())
def test_they_are_those_that_show_a_part_of_it(text, data):
    ends = sorted({0, len(text), *data.draw(st.sets(st.integers(0, len(text))))})
    texts = [text[start:stop] for start, stop in pairwise(ends)]
    content, found = shown(texts)
    assert found == expected(texts)
    assert shown(texts, data.draw(st.sets(st.integers(0, len(texts))))) == (content, found)
    letters = shown(list(text))
    assert "".join(text[number] for number in letters[1]) == letters[0] == content


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["a", "", "b", ""], [0, 1, 2, 3]),
        (["", ""], [0, 1]),
        (["a", "", call("{}"), ""], [0]),
        (["<think>", "a", "</think>", "b", ""], [3, 4]),
        (["<think>", "a", ""], []),
        (["a<tool_call>", ""], [0]),
    ],
)
def test_tokens_without_text_at_the_end_are_those_of_an_answer_that_ends_in_content(texts, numbers):
    assert shown(texts)[1] == numbers
