"""Training batches: what is masked, what is a target, and that a block-causal copy sees what decoding will show it."""

from functools import cache
from random import Random

import pytest
import torch
from tokenizers import Tokenizer

from engine.demo import FOLDERS
from engine.demo.build_tokenizer import token_id
from engine.demo.chat import EOS, MASK
from engine.demo.decode import hidden_rows
from engine.demo.samples import Row
from engine.demo.training.masks import BLOCK as FULL_BLOCK
from engine.demo.training.noise import IGNORED, Sampler, seen
from engine.demo.training.recipe import geometry, initialise
from engine.models.layers import Transformer

BLOCK, STEPS = 16, range(8)


@pytest.fixture(scope="module")
def tokenizer():
    """As it is bundled: tests/engine/demo/test_bundled.py holds it to the one that is built, which takes seconds."""
    return Tokenizer.from_file(str(FOLDERS["demo"] / "tokenizer.json"))


@cache
def batches(tokenizer, block):
    sampler = Sampler(tokenizer, 3, block)
    return [sampler.batch(step, 0.5) for step in STEPS]


@pytest.mark.parametrize("block", [None, BLOCK])
def test_targets_are_masked_and_each_row_has_some(tokenizer, block):
    mask = token_id(tokenizer, MASK)
    for batch in batches(tokenizer, block):
        wanted = batch.targets != IGNORED
        assert (batch.ids[wanted] == mask).all()
        assert (batch.targets != mask).all()
        assert wanted.any(dim=1).all()


@pytest.mark.parametrize("block", [None, BLOCK])
def test_a_step_is_the_same_whoever_asks(tokenizer, block):
    one, other = Sampler(tokenizer, 3, block).batch(7, 0.25), Sampler(tokenizer, 3, block).batch(7, 0.25)
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.targets, other.targets)
    assert not torch.equal(one.ids, Sampler(tokenizer, 4, block).batch(7, 0.25).ids)


@pytest.mark.parametrize("block", [None, BLOCK])
def test_a_clue_is_asked_for_where_its_judgement_is_a_target_and_nowhere_else(tokenizer, block):
    """Owners are asked for where a text has its words, which are clean."""
    mask = token_id(tokenizer, MASK)
    said, graded = (
        {tokenizer.encode(f"{space}{word}").ids[0] for word in words for space in ("", " ")}
        for words in (("Yes", "No", *"ABCD"), "12345")
    )
    sampler = Sampler(tokenizer, 3, block, 2048, lookups=(1, 1))
    clues = owners = 0
    for step in STEPS:
        batch = sampler.batch(step, 0.0)
        decided, owned, masked = batch.clues != IGNORED, batch.owners != IGNORED, batch.ids == mask
        assert masked[decided].all()
        assert set(batch.targets[decided].tolist()) <= said | graded
        assert not masked[owned].any()
        assert not said & set(batch.ids[owned].tolist())
        clues, owners = clues + int(decided.sum()), owners + int(owned.sum())
    assert clues
    assert owners


def test_an_open_block_is_learnt_beside_what_was_seen_when_it_opened(tokenizer):
    mask = token_id(tokenizer, MASK)
    sampler = Sampler(tokenizer, 3, None, 2048, lookups=(0, 0))
    later = met = 0
    for step in range(20):
        batch = sampler.batch(step, 0.0)
        if batch.opening is None:
            assert batch.opened is None
            continue
        met += 1
        assert (batch.opening[batch.opened] == mask).all()
        assert torch.equal(batch.opening[~batch.opened], batch.ids[~batch.opened])
        assert batch.opened[batch.targets != IGNORED].all()
        assert (batch.targets != IGNORED).any(dim=1).all()
        places = torch.arange(batch.ids.shape[1]).expand(batch.ids.shape)
        first = torch.where(batch.opened, places, places.shape[1]).amin(dim=1, keepdim=True)
        assert (batch.opened.sum(dim=1) <= FULL_BLOCK).all()
        assert (batch.ids[places < first] != mask).all(), "what stands before it is there"
        assert (batch.ids[places >= first + FULL_BLOCK] == mask).all(), "nothing behind it is"
        later += int((batch.ids[batch.opened] != mask).sum())
    assert met > 2
    assert later, "some of a block is there when the rest of it is asked for"


@pytest.mark.parametrize("block", [None, BLOCK])
def test_other_batches_have_neither_owners_nor_clues(tokenizer, block):
    sampler = Sampler(tokenizer, 3, block, 2048, lookups=(0, 0))
    for step in STEPS:
        batch = sampler.batch(step, 0.0)
        assert (batch.owners == IGNORED).all()
        assert (batch.clues == IGNORED).all()


@pytest.mark.parametrize("size", [1300, 4096])
def test_a_batch_is_of_about_the_size_that_was_asked_for(tokenizer, size):
    for block in (None, BLOCK):
        for step in STEPS:
            assert size / 3 < Sampler(tokenizer, 3, block, size).batch(step, 0.0).ids.numel() <= size


def test_the_tail_of_a_long_canvas_is_seldom_a_target(tokenizer):
    eos = token_id(tokenizer, EOS)
    tails = [batch for batch in batches(tokenizer, None) if batch.ids.shape[1] > 200]
    assert tails
    for batch in tails:
        assert (batch.targets == eos).sum() < 0.5 * (batch.targets != IGNORED).sum() + 0.05 * batch.ids.numel()


def test_a_copy_sees_what_decoding_shows_it(tokenizer):
    """Its hidden rows are those of a plain block-causal forward over the clean tokens before it, and the copy."""
    model = Transformer(geometry(tokenizer.get_vocab_size(), qk_norm=True))
    model.fill_tables()
    initialise(model, torch.Generator().manual_seed(0))
    for parameter in model.parameters():  # layers that are the identity would hide what they see
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    compared = 0
    with torch.inference_mode():
        for batch in batches(tokenizer, BLOCK)[:3]:
            hidden = hidden_rows(model, batch.ids[:2], seen(batch, BLOCK)[:2], batch.positions[:2])
            for row in range(2):
                for copy in range(1, int(batch.streams.max()) + 1):
                    own = batch.streams[row] == copy
                    first = int(batch.positions[row][own][0])
                    assert first % BLOCK == 0
                    ids = torch.cat([batch.ids[row, :first], batch.ids[row][own]])[None]
                    blocks = torch.arange(ids.shape[1]) // BLOCK
                    plain = hidden_rows(model, ids, (blocks <= blocks[:, None])[None])
                    torch.testing.assert_close(plain[0, first:], hidden[row][own], atol=1e-4, rtol=1e-4)
                    compared += 1
    assert compared > 20


def test_what_stands_behind_an_earlier_answer_is_hidden_from_its_copy(tokenizer):
    """When it is decoded, nothing stands there yet; and what stands before it is as it is."""
    mask, answers = token_id(tokenizer, MASK), [(4, 7), (10, 12)]
    row = Row(list(range(12)), answers)
    batch = Sampler(tokenizer, 0, BLOCK)._blocks([row], Random(0), 32, 60)
    ids, targets = (x[0, 32:].view(-1, BLOCK) for x in (batch.ids, batch.targets))
    of_first = (targets[:, 4:7] != IGNORED).any(dim=1)
    assert 5 < of_first.sum() < 55
    assert (ids[of_first, :4] == torch.arange(4)).all()
    assert (ids[of_first, 7:] == mask).all()
    assert (targets[of_first, 7:] == IGNORED).all(), "an earlier answer is followed by another token than the last one"
    assert (ids[~of_first, :10] == torch.arange(10)).all()
    assert (targets[~of_first, 10:13] != IGNORED).any(dim=1).all()
