"""LLaDA2.2 in the LLaDA2 family: experts that a block's rows choose together, and tokens that edit."""

import json
import random
import shutil
from dataclasses import replace

import pytest
import torch

from engine import DiffusionParams, InvalidRequest, LoadError, SamplingParams, Submission
from engine.execution import step
from engine.execution.batch import lay_out
from engine.models import describe
from engine.models.experts import BlockRouting, MoEConfig, Router
from engine.models.families.llada2 import Config, destinations
from engine.scheduling.checks.submission import check
from tests.golden import llada2 as golden
from tests.golden.checkpoint import Checkpoint
from tests.golden.logits import LARGEST_DISTANCE, distances
from tests.golden.rows import differences, rather_short, read_rows
from tests.golden.through_engine import engine_of

TOKENS = {"<|mask|>": 156895, "<|endoftext|>": 156892, "<|role_end|>": 156900}
ROUTING = BlockRouting(4, 6)
ROUTED = MoEConfig(
    num_experts=16,
    experts_per_token=3,
    ff_dim=8,
    score="sigmoid",
    has_choice_bias=True,
    is_normalised=True,
    scale=2.5,
    block_routing=ROUTING,
)


@pytest.fixture(scope="module")
def checkpoint(llada22_tiny):
    return Checkpoint.load(llada22_tiny)


@pytest.fixture
def config(published):
    return published("llada2.2-flash")


@pytest.fixture(scope="module")
def router():
    torch.manual_seed(2)
    made = Router(12, ROUTED).requires_grad_(False)
    made.logits.weight.normal_()
    made.bias.normal_(0.0, 0.3)
    return made


def test_the_published_geometry(config):
    geometry = Config.read(config).geometry
    assert len(destinations(geometry)) == 24_161
    assert (geometry.moe.block_routing, geometry.moe.num_groups) == (BlockRouting(32, 48), 1), "groups have no effect"
    assert geometry.rope_theta == 3_000_000


def test_what_decoding_needs_to_know(config):
    spec = Config.read(config).spec(TOKENS, [156892, 156900])
    assert (spec.routing_block, spec.block_length, spec.delete_id, spec.split_id) == (32, 32, 156930, 156931)
    of_more = Config.read({**config, "block_size": 48}).spec(TOKENS)
    assert of_more.block_length == of_more.routing_block == 48
    assert Config.read({**config, "block_size": 12}).spec(TOKENS).block_length == 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": None}, "block_size is missing"),
        ({"block_size": 0}, "block_size"),
        ({"expert_capacity": 257}, "a block has 257 experts of 256"),
        ({"expert_capacity": 7}, "each token has 8 experts of 7"),
        ({"delete_token_id": -1}, "delete_token_id"),
    ],
)
def test_what_is_refused(config, changes, message):
    with pytest.raises(LoadError, match=message):
        Config.read({**config, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split_token_id": 264}, "264 deletes or splits; the vocabulary has 264"),
        ({"split_token_id": 260}, "which delete and split, one is the other"),
        ({"delete_token_id": 256}, "its mask or an end"),
    ],
)
def test_tokens_that_cannot_edit(llada22_tiny, tmp_path, changes, message):
    folder = shutil.copytree(llada22_tiny, tmp_path / "copy")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))
    with pytest.raises(LoadError, match=message):
        describe(folder)


def by_definition(rows, router):
    """The experts of one block's rows, best first, in plain Python."""
    scores = (rows.double() @ router.logits.weight.double().T).sigmoid() + router.bias.double()
    worth = {expert: max(scores[:, expert].tolist()) for expert in range(ROUTED.num_experts)}
    pool = sorted(worth, key=lambda expert: (-worth[expert], expert))[: ROUTING.pool_size]
    return [
        sorted(sorted(pool), key=lambda expert: -row[expert])[: ROUTED.experts_per_token] for row in scores.tolist()
    ]


def test_a_blocks_rows_choose_from_its_pool(router):
    """Blocks of several sequences, the last of each shorter or not, and rows of padding at the end."""
    torch.manual_seed(3)
    lengths, starts = [8, 6, 4, 1, 1, 1], [0, 4, 4, 0, 0, 0]
    positions = torch.cat([torch.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])
    blocks = ROUTING.blocks(positions)
    assert blocks.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 2 + [4] * 4 + [5, 6, 7]
    x = torch.randn(len(positions), 12)
    chosen, weights = router(x, blocks)
    differ = 0
    for block in range(8):
        rows = x[blocks == block]
        assert chosen[blocks == block].tolist() == by_definition(rows, router)
        alone = router(rows, torch.zeros(len(rows), dtype=torch.int64))
        assert torch.equal(alone[0], chosen[blocks == block])
        torch.testing.assert_close(alone[1], weights[blocks == block])
        free = Router.forward(_without_pools(router), rows)[0]
        differ += not torch.equal(free, alone[0])
    assert differ > 2, "pools that keep a row from experts that it would have chosen"
    torch.testing.assert_close(weights.sum(dim=-1), torch.full((len(x),), 2.5))


def _without_pools(router):
    free = Router(12, replace(ROUTED, block_routing=None)).requires_grad_(False)
    free.load_state_dict(router.state_dict())
    return free


def test_of_equal_scores_the_expert_with_the_lower_number_goes_first():
    ranked = torch.zeros(5, 16)
    within = ROUTING.within_pools(ranked, torch.zeros(5, dtype=torch.int64))
    assert within.isfinite().nonzero()[:, 1].tolist() == list(range(ROUTING.pool_size)) * 5
    router = Router(12, ROUTED).requires_grad_(False)
    router.logits.weight.zero_()
    router.bias.zero_()
    assert router(torch.ones(2, 12), torch.tensor([0, 0]))[0].tolist() == [[0, 1, 2]] * 2


def test_logits_of_the_formula(checkpoint):
    assert max(distances(checkpoint)) < LARGEST_DISTANCE


@pytest.mark.slow
def test_the_plain_loop_decodes_as_sglang(checkpoint):
    rows = read_rows(checkpoint.folder / "generations.json")
    assert len(rows) == 40
    rows = rather_short(rows, lambda row: (row["deletes"] > 0, row["splits"] > 0))
    assert differences(rows, golden.through_plain_loop(checkpoint, rows)) == []


@pytest.mark.parametrize(("param", "value"), [("block_length", 24), ("block_length", 8), ("cache", "sub_block")])
def test_what_would_cut_a_block_that_is_routed_together(checkpoint, param, value):
    diffusion = {"cache": "block", "block_length": 32, param: value}
    sampling = SamplingParams(max_tokens=4)
    asked = Submission(request_id="r", prompt_ids=[1], sampling=sampling, diffusion=DiffusionParams(**diffusion))
    with pytest.raises(InvalidRequest, match=f"diffusion.{param}") as refused:
        check(asked, checkpoint.spec)
    assert refused.value.param == f"diffusion.{param}"


def random_submissions(count):
    """Of prompts that begin alike, with policies that have nothing to do with LLaDA2.2."""
    rng = random.Random(5)
    shared = [rng.randrange(250) for _ in range(70)]
    for number in range(count):
        own = [rng.randrange(250) for _ in range(rng.randint(1, 9))]
        yield Submission(
            request_id=str(number),
            prompt_ids=shared[: rng.randint(0, 70)] + own,
            sampling=SamplingParams(max_tokens=rng.randint(1, 20), ignore_eos=True, logprobs=0),
            diffusion=DiffusionParams(
                unmask=rng.choice(["threshold", "fixed", "edit"]), threshold=0.2, block_length=rng.choice([16, 32])
            ),
        )


@pytest.fixture(scope="module")
def alone(llada22_tiny):
    """Requests, and what an engine without anything to share says to each alone."""
    asked = list(random_submissions(6))
    apart = engine_of(llada22_tiny, max_model_len=128, prefix_caching=False)
    return asked, {one.request_id: told(apart, [one])[one.request_id] for one in asked}


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"page_size": 5, "kv_cache_tokens": 160, "max_model_len": 128},
        {"page_size": 8, "max_running_requests": 2, "max_batch_rows": 128, "max_model_len": 128},
    ],
)
def test_a_request_gets_in_company_what_it_gets_alone(alone, llada22_tiny, monkeypatch, settings):
    """Whatever pages it shares, and in whatever parts prompts are computed: whole blocks are routed."""
    asked, wanted = alone
    crowded = engine_of(llada22_tiny, **settings)
    rows = []

    def watched(plans, *sizes):
        rows.extend((plan.rows[0], plan.rows[-1], plan.request.committed) for plan in plans)
        return lay_out(plans, *sizes)

    monkeypatch.setattr(step, "lay_out", watched)
    assert told(crowded, asked) == wanted
    assert {(first % 16, last % 16) for first, last, _ in rows} == {(0, 15)}
    if settings["page_size"] == 5:
        assert any(first < committed for first, _, committed in rows), "of a block whose first page another computed"
    assert crowded.stats().prompt_tokens_found > 20


def told(engine, submissions):
    """Tokens and log-probabilities of each, which all come at once."""
    for one in submissions:
        engine.submit(engine.new_request(one))
    made = {one.request_id: [] for one in submissions}
    while engine.request_ids:
        for output in engine.step():
            made[output.request_id] += zip(output.token_ids, output.logprobs, strict=True)
    return made
