"""Reasoning told from content, however the text is cut into pieces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.replies.reasoning import ReasoningReader

CLOSE = 7
TEXTS = {
    "none": (False, "Hello.", "", "Hello."),
    "some": (False, "<think>\nTwo and\ntwo.\n</think>\n\nFour.", "Two and\ntwo.", "Four."),
    "white space before": (False, "\n <think>a</think>b", "a", "b"),
    "opened by the template": (True, "\nTwo.\n</think>\n\n4 ", "Two.", "4 "),
    "never closed": (False, "<think>Hm. ", "Hm.", ""),
    "opened, never closed": (True, "Hm", "Hm", ""),
    "nothing thought": (False, "<think>\n\n</think>\n\nHi.", "", "Hi."),
    "later tags are content": (False, "Say <think>a</think>", "", "Say <think>a</think>"),
    "tags in content": (False, "<think>a</think>b</think><think>", "a", "b</think><think>"),
    "half a tag": (False, "<thi", "", "<thi"),
    "half a tag at the end": (False, "<think>a</thi", "a</thi", ""),
    "another tag": (False, "<thing>a", "", "<thing>a"),
    "nothing": (False, "", "", ""),
}


def read(is_open, pieces):
    reader = ReasoningReader(is_open=is_open)
    told = [reader.push(piece, last=number == len(pieces) - 1) for number, piece in enumerate(pieces)]
    return "".join(one for one, _ in told), "".join(two for _, two in told), told


@pytest.mark.parametrize("name", TEXTS)
@given(data=st.data())
@settings(max_examples=30)
def test_any_pieces(name, data):
    is_open, text, reasoning, content = TEXTS[name]
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(is_open, pieces)[:2] == (reasoning, content)


def test_text_is_handed_out_as_soon_as_it_is_final():
    _, _, told = read(False, ["<think>", "one ", "two", "</th", "ink>", "\n", "answer", ""])
    assert told == [("", ""), ("one", ""), (" two", ""), ("", ""), ("", ""), ("", ""), ("", "answer"), ("", "")]


def test_tokens_are_counted_up_to_the_second_tag():
    reader = ReasoningReader(close_id=CLOSE)
    reader.push("<think>a", [1, 2, 3], last=False)
    assert reader.num_tokens == 3
    reader.push("b</think>c", [4, CLOSE, 5], last=False)
    reader.push("d", [6, 8], last=True)
    assert reader.num_tokens == 5
    none = ReasoningReader(close_id=CLOSE)
    none.push("abc", [1, 2, CLOSE], last=True)
    assert none.num_tokens == 0
