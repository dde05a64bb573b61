"""Training: a resumed run is the unbroken one, and a checkpoint loads as the published models do."""

import itertools
from dataclasses import replace
from random import Random

import pytest
import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

from engine import DiffusionParams, EngineConfig, SamplingParams, Submission, load
from engine.core.errors import LoadError
from engine.demo.build_tokenizer import save, token_id
from engine.demo.chat import EOT
from engine.demo.checkpoint import export
from engine.demo.decode import decode, hidden_rows
from engine.demo.samples import LOOKUPS_SHARE
from engine.demo.tasks import TASKS
from engine.demo.training import run as runs
from engine.demo.training.cached import Opening, cached_rows
from engine.demo.training.noise import IGNORED, Sampler, seen
from engine.demo.training.recipe import AUXILIARY_WEIGHT, FINAL_LR, RECIPES, geometry, learning_rate
from engine.demo.training.run import Run, kept_rows, loss_of
from engine.models import describe, load_model

pytestmark = pytest.mark.slow

STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save(folder)
    return folder


@pytest.fixture
def make(folder, monkeypatch):
    """`make(name)`: a run of a smaller model on smaller batches."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def small(vocab_size, *, qk_norm):
        return replace(geometry(vocab_size, qk_norm=qk_norm), dim=64, head_dim=16, num_layers=2)

    monkeypatch.setattr(runs, "geometry", small)
    monkeypatch.setattr(runs, "OWNER_LAYER", 0)
    monkeypatch.setattr(runs, "CLUE_LAYER", 1)

    def run(name, lookups=LOOKUPS_SHARE):
        recipe = replace(RECIPES[name], steps=STEPS)
        return Run(Sampler(tokenizer, 5, recipe.block, 1300, lookups), recipe)

    return run


def advanced(run, steps, workers=0):
    """The losses of these steps."""
    losses = []
    for batch in itertools.islice(run.batches(workers), steps):
        run.advance(batch)
        losses.append(run.mean_loss())
        run.forget_losses()
    return losses


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_run_is_the_unbroken_one(make, name, tmp_path):
    unbroken, first, second = (make(name, (0.6, 0.6)) for _ in range(3))
    losses = advanced(unbroken, STEPS)
    halves = advanced(first, STEPS // 2)
    first.save(tmp_path / "state.pt")
    second.resume(tmp_path / "state.pt")
    halves += advanced(second, STEPS // 2, workers=2)
    assert halves == losses
    for one, other in zip(unbroken.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", RECIPES)
def test_a_checkpoint_is_read_as_it_was_written(make, name, tmp_path):
    run = make(name)
    for parameter in run.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        parameter.data = parameter.data.half().float()
    export(run.model, run.sampler.rows.tokenizer, tmp_path, run.recipe.block)
    read = describe(tmp_path)
    assert read.spec.attention == ("full" if run.recipe.block is None else "block_causal")
    assert run.recipe.block is None or read.spec.block_length == run.recipe.block
    model = load_model(tmp_path, read, torch.float32, torch.device("cpu"))
    again = make(name)
    again.begin_with(tmp_path)
    for one, other in zip(again.model.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(one, other)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(hidden_rows(model, ids), hidden_rows(run.model, ids))


@pytest.mark.parametrize("name", RECIPES)
def test_layers_that_a_checkpoint_lacks_change_nothing_before_they_learn(make, name, tmp_path, monkeypatch):
    small, run = runs.geometry, make(name)
    monkeypatch.setattr(runs, "geometry", lambda *args, **kwargs: replace(small(*args, **kwargs), num_layers=1))
    begun = make(name)
    for parameter in begun.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        parameter.data = parameter.data.half().float()
    export(begun.model, begun.sampler.rows.tokenizer, tmp_path, begun.recipe.block)
    run.begin_with(tmp_path)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(hidden_rows(run.model, ids), hidden_rows(begun.model, ids))


def test_a_checkpoint_with_more_layers_has_no_place(make, tmp_path, monkeypatch):
    run = make("demo")
    export(run.model, run.sampler.rows.tokenizer, tmp_path, None)
    small = runs.geometry
    monkeypatch.setattr(runs, "geometry", lambda *args, **kwargs: replace(small(*args, **kwargs), num_layers=1))
    with pytest.raises(LoadError, match=r"no place for: blocks\.1"):
        make("demo").begin_with(tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_the_plain_decoder_says_what_the_engine_says(make, name, tmp_path):
    """Exact decode, from the question form of a few problems, whatever the weights say."""
    run = make(name)
    for number, (parameter_name, parameter) in enumerate(run.model.named_parameters()):
        std = 2.0 if "head" in parameter_name else 0.2  # peaked, so that no two positions are equally sure
        generator = torch.Generator().manual_seed(number)
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=std, generator=generator)
    tokenizer, block = run.sampler.rows.tokenizer, run.recipe.block
    with torch.no_grad():  # at which the engine ends too, and of which no trained model says one here
        run.model.head.weight[token_id(tokenizer, EOT)] = 0.0
    export(run.model, tokenizer, tmp_path, block)
    prompts = [f"Question: {TASKS[task](Random(3)).prompt}\nAnswer:" for task in ("word", "sort", "facts")]
    plain = decode(run.model, tokenizer, prompts, canvas=64, block=block)
    engine = load(EngineConfig(model=str(tmp_path), device="cpu", dtype="float32"))
    diffusion = DiffusionParams(
        cache="none" if block is None else "block", unmask="fixed", steps=None, lookahead=None, block_length=block or 32
    )
    for i, prompt in enumerate(prompts):
        submission = Submission(
            request_id=str(i),
            prompt_ids=tokenizer.encode(prompt).ids,
            sampling=SamplingParams(max_tokens=64),
            diffusion=diffusion,
        )
        engine.submit(engine.new_request(submission))
    said = {str(i): [] for i in range(len(prompts))}
    while engine.request_ids:
        for output in engine.step():
            said[output.request_id] += output.token_ids
    assert [tokenizer.decode(ids) for ids in said.values()] == plain
    assert any(plain)


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_is_that_of_all_rows_with_owners_and_clues_beside_it(make, name):
    """Against torch's own mean over all rows, at the last layer and at those that are asked for owners and clues."""
    run = make(name)
    for parameter in run.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    met, cached = set(), set()
    for step in range(12):
        batch = run.sampler.batch(step, 0.0)
        cached.add(batch.opening is not None)
        visible = None if run.recipe.block is None else seen(batch, run.recipe.block)
        with torch.no_grad(), kept_rows(run.model) as kept:
            if batch.opening is None:
                hidden = hidden_rows(run.model, batch.ids, visible, batch.positions)
            else:
                hidden = cached_rows(run.model, batch)
            expected = cross_entropy(run.model.logits(hidden.flatten(0, 1)), batch.targets.flatten())
            for layer, wanted in enumerate((batch.owners.flatten(), batch.clues.flatten())):
                if (asked := wanted != IGNORED).any():
                    said = run.model.logits(kept[layer][asked])
                    expected = expected + AUXILIARY_WEIGHT * cross_entropy(said, wanted[asked])
                    met.add(layer)
            loss = loss_of(run.model, batch, run.recipe.block)
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert met == {0, 1}
    assert cached == ({False, True} if run.recipe.block is None else {False})


def test_an_open_block_sees_the_rest_as_it_was_when_the_block_opened(make):
    run = make("demo")
    for parameter in run.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    steps = (run.sampler.batch(step, 0.0) for step in itertools.count())
    batch = next(batch for batch in steps if batch.opening is not None)

    def block_rows(**changed):
        with torch.no_grad():
            return cached_rows(run.model, batch._replace(**changed))[batch.opened]

    now = block_rows()
    at_first = block_rows(ids=batch.opening)
    with torch.no_grad():
        torch.testing.assert_close(at_first, hidden_rows(run.model, batch.opening)[batch.opened])
        assert not torch.allclose(now, hidden_rows(run.model, batch.ids)[batch.opened], atol=1e-3)
    assert not torch.allclose(now, at_first, atol=1e-3), "the block's own tokens are seen"
    elsewhere = torch.where(batch.opened, batch.ids, 7)
    assert torch.equal(block_rows(ids=elsewhere), now), "outside of it nothing is computed anew"
    assert not torch.allclose(block_rows(opening=torch.where(batch.opened, batch.opening, 7)), now, atol=1e-3)


def test_nothing_is_learnt_through_what_was_kept(make, monkeypatch):
    run, kept, attend = make("demo"), [], Opening.attend
    for parameter in run.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    steps = (run.sampler.batch(step, 0.0) for step in itertools.count())
    batch = next(batch for batch in steps if batch.opening is not None)

    def watched(context, layer, q, k, v):
        kept.extend((k, v))
        return attend(context, layer, q, k, v)

    monkeypatch.setattr(Opening, "attend", watched)
    torch.autograd.backward(loss_of(run.model, batch, None))
    assert kept
    assert not any(tensor.requires_grad for tensor in kept)
    assert all(parameter.grad is not None for parameter in run.model.parameters())


def test_rows_are_kept_behind_each_layer_and_only_meanwhile(make):
    run = make("demo")
    for parameter in run.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    ids, parts = torch.arange(12)[None], run.model.parts
    with torch.inference_mode(), kept_rows(run.model) as kept:
        hidden = hidden_rows(run.model, ids)
        assert torch.equal(kept[1], hidden[0])
        assert not torch.equal(kept[0], kept[1])
    assert len(kept) == len(run.model.blocks)
    assert run.model.parts is parts


def test_the_mean_loss_is_of_all_steps_since_it_began_anew(make):
    run, other = make("demo"), make("demo")
    for batch in itertools.islice(run.batches(), 2):
        run.advance(batch)
        run.mean_loss()  # a line of the log in between changes nothing
    assert run.mean_loss() == pytest.approx(sum(advanced(other, 2)) / 2)


def test_the_rate_warms_up_stays_and_falls():
    rates = [learning_rate(step, 1000) for step in range(1001)]
    assert rates[0] == 0.01
    assert rates[100] == rates[500] == 1
    assert rates[775] == pytest.approx(0.51)
    assert rates[1000] == pytest.approx(FINAL_LR)
