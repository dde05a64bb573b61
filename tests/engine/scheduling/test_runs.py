"""Runs of equal tokens, by hand and against a search that compares everything."""

import random

import numpy as np
import pytest

import engine.scheduling.relay.runs as runs
from engine.scheduling.relay.runs import LEAST, Match, Windows, matches


def plain(prompt, texts):
    """The same by its definition: each start, each text, the first place that has `LEAST` equal tokens."""
    found, start = [], 0
    while start < len(prompt):
        best = None
        for number, text in enumerate(texts):
            for place in range(len(text)):
                length = 0
                while (
                    start + length < len(prompt)
                    and place + length < len(text)
                    and prompt[start + length] == text[place + length]
                ):
                    length += 1
                if length >= LEAST:
                    if best is None or length > best.length:
                        best = Match(number, place, start, length)
                    break
        found += [best] if best else []
        start = best.start + best.length if best else start + 1
    return found


def found(prompt, texts):
    return matches(np.array(prompt), [Windows(np.array(text, np.int64)) for text in texts])


@pytest.mark.parametrize("seed", range(20))
def test_runs_are_those_of_a_plain_search(seed):
    rng = random.Random(seed)
    texts = [[rng.randrange(3) for _ in range(rng.randrange(60))] for _ in range(3)]
    pieces = [text[rng.randrange(10) :][: rng.randrange(40)] for text in rng.choices(texts, k=5)]
    prompt = [token for piece in pieces for token in [*piece, rng.randrange(3)]]
    assert found(prompt, texts) == plain(prompt, texts)


def test_a_run_of_one_token_less_is_none():
    text = list(range(100, 100 + LEAST))
    assert found([1, *text, 2], [[7, 8, *text]]) == [Match(0, 2, 1, LEAST)]
    assert found([1, *text[:-1], 2], [text]) == []
    assert found([], [text]) == found(text, []) == found(text, [[]]) == []


def test_of_texts_that_have_a_run_the_longest_is_taken_and_of_equals_the_first():
    text = list(range(40))
    assert found(text, [text[:20], text[:30], text[:30]]) == [Match(1, 0, 0, 30)]


def test_what_is_no_token_equals_none():
    text = np.arange(40)
    text[20] = -1
    assert matches(np.arange(40), [Windows(text)]) == [Match(0, 0, 0, 20), Match(0, 21, 21, 19)]


def test_two_windows_with_one_hash_are_no_run(monkeypatch):
    monkeypatch.setattr(runs, "_FACTOR", np.uint64(0))  # the hash of a window is its last token's
    text = [*range(1, 20), 99]
    assert found([*range(50, 65), 99, *text], [text]) == plain([*range(50, 65), 99, *text], [text])
