"""Masks where attention is full: what they leave of answers of every length, and that decode's own states occur."""

import pytest
import torch

from engine.demo.training import masks
from engine.demo.training.masks import BLOCK, block_masks, full_masks

ROWS, LENGTH, START = 2000, 120, 10


def answers(length):
    """Of so many tokens each: where they start and end."""
    starts = torch.full((ROWS, 1), START)
    return starts, starts + length


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("length", [1, 5, 31, 32, 33, 70])
def test_each_row_has_some_of_its_answer_or_of_the_end_behind_it_to_say(length):
    starts, ends = answers(length)
    masked = full_masks(starts, ends, LENGTH, generator())
    own = masked[:, START : START + length + 1]
    assert own.any(dim=1).all()


def test_each_way_occurs_as_often_as_it_should():
    """Rows are told apart by what they leave; where two ways may leave the same, bounds are wider."""
    starts, ends = answers(40)
    masked = full_masks(starts, ends, LENGTH, generator())
    has_prompt = masked[:, :START].any(dim=1)
    closed = masked[:, START + 2 * BLOCK :].all(dim=1)  # behind the last block that may be open
    from_somewhere_on = (masked.int().diff(dim=1) >= 0).all(dim=1)

    def share(rows):
        return rows.float().mean().item()

    assert 0.13 < share(has_prompt & ~from_somewhere_on) < 0.19
    assert 0.25 < share(~has_prompt & ~closed) < 0.34
    assert 0.18 < share(~has_prompt & from_somewhere_on) < 0.30
    assert 0.22 < share(~has_prompt & closed & ~from_somewhere_on) < 0.35


@pytest.mark.parametrize("length", [1, 5, 31, 32, 33, 70])
def test_an_open_block_is_between_clean_ones_and_masks(length):
    starts, ends = answers(length)
    masked, is_open = block_masks(starts, ends, LENGTH, generator())
    numbers = set()
    for row, block in zip(masked, is_open, strict=True):
        first = int(block.nonzero()[0, 0])
        assert (first - START) % BLOCK == 0
        assert block.sum() == min(BLOCK, LENGTH - first)
        assert not row[:first].any()
        assert row[first + BLOCK :].all()
        assert row[first : min(first + BLOCK, START + length + 1)].any()
        numbers.add((first - START) // BLOCK)
    assert numbers == set(range(length // BLOCK + 1))


@pytest.mark.parametrize("length", [1, 5, 31, 32, 33, 70])
def test_ends_may_be_known_before_anything_else(length, monkeypatch):
    """EOS may be known from any place behind the EOS that ends the answer. In earlier blocks nothing is known."""
    monkeypatch.setattr(masks, "ENDED_SHARE", 1.0)
    masked, is_open = block_masks(*answers(length), LENGTH, generator())
    known = {}
    for row, block in zip(masked, is_open, strict=True):
        first = int(block.nonzero()[0, 0])
        in_block = row[first : first + BLOCK].tolist()
        count = in_block.index(False) if False in in_block else BLOCK
        assert not any(in_block[count:]), "masks and then EOS alone"
        known.setdefault((first - START) // BLOCK, set()).add(count)
    own = length % BLOCK + 1
    last = length // BLOCK
    assert known.pop(last) == set(range(own, BLOCK + 1))
    assert all(counts == {BLOCK} for counts in known.values())
