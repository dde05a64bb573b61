"""A passage shows the same text and the same tokens however its blocks were split."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import TokenLogprobs
from server.replies.passage import Passage
from server.replies.stop_strings import StopStrings
from server.text.detokenizer import Detokenizer


def passage(tokenizer, stops=(), **options):
    return Passage(Detokenizer(tokenizer), StopStrings(stops), **options)


def read(passage, ids, cuts=()):
    """The text and the tokens of ids that come in blocks cut there."""
    edges = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    text, tokens = "", []
    for place, (start, end) in enumerate(pairwise(edges)):
        said = [TokenLogprobs(-float(number), ()) for number in range(start, end)]
        fresh, begun = passage.push(ids[start:end], said, last=place == len(edges) - 2)
        assert all(len(text) <= token.offset <= len(text) + len(fresh) for token in begun)
        text, tokens = text + fresh, tokens + begun
        if passage.stop is not None:
            break
    return text, tokens


ALPHABET = st.lists(st.sampled_from([*b"abc", 0xE2, 0x82, 0xAC, 256]), max_size=16)


@given(ids=ALPHABET, cuts=st.lists(st.integers(0, 16), max_size=4), stop=st.sampled_from(["", "ab", "ca", "€"]))
@settings(deadline=None)
def test_blocks_do_not_matter(tokenizer, ids, cuts, stop):
    def new(**options):
        return passage(tokenizer, [stop] if stop else [], **options)

    text, tokens = read(new(is_tracked=True), ids)
    assert read(new(is_tracked=True), ids, cuts) == (text, tokens)
    assert read(new(), ids, cuts) == (text, []), "whether tokens are asked for or not"
    assert [token.id for token in tokens] == ids[: len(tokens)], "none is left out but at the end"
    assert [token.logprobs.logprob for token in tokens] == [-float(place) for place in range(len(tokens))]
    assert [token.offset for token in tokens] == sorted(token.offset for token in tokens)
    whole = tokenizer.decode(tokenizer.without_special(ids))
    assert whole.startswith(text)
    if not stop:
        assert (text, len(tokens)) == (whole, len(ids))


@given(ids=st.lists(st.sampled_from([*b"ab", *"é€😀".encode(), 0x9E, 0xC6, 0xED, 0xF4, 0xFF]), max_size=16))
@settings(deadline=None)
def test_tokens_stand_where_their_characters_do(tokenizer, ids):
    """A byte has part in the last character that the bytes up to it begin, whole or not."""
    _, tokens = read(passage(tokenizer, is_tracked=True), ids)
    begun = [len(bytes(ids[: place + 1]).decode(errors="replace")) for place in range(len(ids))]
    assert [token.offset for token in tokens] == [count - 1 for count in begun]


@pytest.mark.parametrize("byte", [0x80, 0xFF])
def test_bytes_that_form_no_character_do_not_pile_up(tokenizer, byte):
    """Each token would be read again for each one behind it."""
    tracked = passage(tokenizer, ["stop"], is_tracked=True)
    for number in range(1, 50):
        text, tokens = tracked.push([byte], None, last=False)
        assert text == "\ufffd", number
        assert len(tokens) == 1


def test_tokens_without_a_text_are_not_looked_at_again(tokenizer):
    """The end of a canvas may be thousands of them."""
    tracked, looks = passage(tokenizer, is_tracked=True), 0

    class Watched(int):
        def __add__(self, other):
            return Watched(int(self) + other)

        def __gt__(self, other):
            nonlocal looks
            looks += 1
            return int(self) > other

    tracked._num_shown = Watched(0)
    for _ in range(1000):
        tracked.push([256], None, last=False)
    assert looks < 1000 * 2 * (1000).bit_length()
    assert len(tracked.push([97], None, last=True)[1]) == 1001


@given(ids=ALPHABET, cuts=st.lists(st.integers(0, 16), max_size=4), least=st.integers(0, 6))
@settings(deadline=None)
def test_the_least_tokens_are_not_searched(tokenizer, ids, cuts, least):
    text, _ = read(passage(tokenizer, ["a"], min_tokens=least), ids, cuts)
    before, _ = read(passage(tokenizer), ids[:least])
    assert text == read(passage(tokenizer, ["a"], min_tokens=least, is_tracked=True), ids)[0]
    assert "a" not in text[len(before) :]


@given(ids=ALPHABET, cuts=st.lists(st.integers(0, 16), max_size=4))
@settings(deadline=None)
def test_a_stop_token_ends_it(tokenizer, ids, cuts):
    stopped = passage(tokenizer, stop_ids=frozenset({99}), is_tracked=True)
    text, tokens = read(stopped, ids, cuts)
    before = ids[: ids.index(99)] if 99 in ids else ids
    assert (text, tokens) == read(passage(tokenizer, is_tracked=True), before)
    assert stopped.stop == (99 if 99 in ids else None)
