"""The engine against what the published code computed: logits, and all 180 generations token for token."""

import random

import pytest
import torch
from safetensors.torch import load_file

from engine.bench.reference import DenseContext, decode, factor, fixed, threshold
from engine.models import describe, load_model

SEVENTH = slice(None, None, 7)


@pytest.fixture(scope="module")
def few(golden):
    """Of each pair of policies the row with the fewest forwards. `make test-golden` has all decoded one by one."""
    rows = {(row["cache"], row["unmask"]): row for row in sorted(golden, key=lambda row: -row["nfe"])}
    assert rows.keys() == {(c, u) for c in ("none", "prefix", "dual") for u in ("fixed", "threshold", "factor")}
    return list(rows.values())


@pytest.fixture(scope="module")
def model(llada_tiny):
    return load_model(llada_tiny, describe(llada_tiny), torch.float32, torch.device("cpu"))


def test_logits_of_a_dense_forward(model, llada_tiny):
    tensors = load_file(llada_tiny / "logits.safetensors")
    names = [name for name in tensors if name.startswith("input_ids_")]
    assert names
    for name in names:
        ids, expected = tensors[name], tensors[name.replace("input_ids", "logits")]
        with torch.inference_mode():
            hidden = model(ids, torch.arange(len(ids)), DenseContext(model, len(ids)))
            torch.testing.assert_close(model.logits(hidden), expected, atol=1e-4, rtol=0)


def test_wanted_rows_are_those_of_all_and_the_last_layer_computes_no_other(model):
    ids, wanted = torch.arange(40) * 7 % model.config.vocab_size, torch.tensor([3, 39, 0])
    counts, after = [], model.parts.after
    model.parts = model.parts._replace(
        after=lambda block, x, *others: counts.append(len(x)) or after(block, x, *others)
    )
    try:
        with torch.inference_mode():
            hidden, some = (model(ids, torch.arange(40), DenseContext(model, 40), rows) for rows in (None, wanted))
    finally:
        model.parts = model.parts._replace(after=after)
    torch.testing.assert_close(some, hidden[wanted])
    layers = model.config.num_layers
    assert counts == [40] * layers + [40] * (layers - 1) + [3]


def test_generations_alone(engine, few, submission, run):
    for number, row in enumerate(few):
        tokens, _, usage = run(engine, submission(number, **row))[str(number)]
        assert tokens == row["output"], f"row {number}"
        assert usage.forwards == row["nfe"], f"row {number}"
    assert engine.stats().kv_pages_used == 0


@pytest.mark.parametrize("some", [SEVENTH, pytest.param(slice(None), marks=pytest.mark.slow)], ids=["few", "all"])
def test_generations_in_one_running_batch(engine, golden, submission, some):
    """Submitted at staggered times in random order: a row joins and leaves a batch of every policy there is."""
    rng, golden = random.Random(20261122), golden[some]
    pending = rng.sample(list(enumerate(golden)), len(golden))
    tokens = {number: [] for number in range(len(golden))}
    steps = 0
    while pending or engine.request_ids:
        for _ in range(min(rng.randint(0, 3), len(pending))):
            number, row = pending.pop()
            engine.submit(engine.new_request(submission(number, **row)))
        for output in engine.step():
            tokens[int(output.request_id)].extend(output.token_ids)
        steps += 1
    assert [number for number, row in enumerate(golden) if tokens[number] != row["output"]] == []
    assert steps < sum(row["nfe"] for row in golden) / 5, "they did not share forwards"
    assert engine.stats().kv_pages_used == 0


def test_the_reference_loops(model, few):
    for number, row in enumerate(few):
        block = row["block_length"]
        rule = {
            "fixed": lambda row=row, block=block: fixed(block, row["steps"] * block // row["gen_length"]),
            "threshold": lambda row=row: threshold(row["threshold"]),
            "factor": lambda row=row: factor(row["factor"]),
        }[row["unmask"]]()
        decoded = decode(
            model,
            row["prompt"],
            gen_length=row["gen_length"],
            block_length=block,
            mask_id=256,
            cache=row["cache"],
            rule=rule,
        )
        assert decoded.tokens == row["output"], f"row {number}"
        assert decoded.forwards == row["nfe"], f"row {number}"


def test_the_golden_rows_cover_every_policy(golden, few):
    pairs = {(row["cache"], row["unmask"]) for row in golden[SEVENTH]}
    assert pairs == {(row["cache"], row["unmask"]) for row in few}
    assert len(golden) == 180
