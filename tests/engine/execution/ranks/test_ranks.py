"""Two ranks are one engine: what they decode, what goes wrong on one of them, and how they end."""

import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe

import pytest
import torch

from engine import ConfigError, EngineConfig, FinishReason, load
from engine.core.errors import DeviceLost
from engine.execution.ranks.group import Group
from engine.execution.ranks.processes import start_processes
from engine.execution.ranks.runner import best_of_all
from engine.kernels.proposals import best_token
from engine.models.ranks.cut import Rank
from tests.engine import relaying
from tests.engine.faulty import outputs


def settings(folder, **others):
    return EngineConfig(**{"model": str(folder), "device": "cpu", "dtype": "float32"} | others)


def on_one(folder, asked, **others):
    return outputs(load(settings(folder, **others)), *asked)


@pytest.fixture(scope="module")
def two(ranks, llada_tiny):
    return ranks(llada_tiny, max_batch_rows=4096)


def test_requests_of_every_kind_share_steps(two, crowd, undisturbed):
    assert outputs(two, *crowd) == undisturbed
    assert two.stats().kv_pages_used == 0


def test_it_is_one_model(two, llada_tiny):
    one = load(settings(llada_tiny)).info
    assert two.info.num_parameters == one.num_parameters
    assert one.weight_bytes < two.info.weight_bytes < 1.01 * one.weight_bytes, "norms are whole on each"


@pytest.mark.slow
def test_requests_that_are_preempted(ranks, submission, sdar_tiny):
    row = {"gen_length": 48, "cache": "block", "threshold": 0.3, "ignore_eos": True}
    asked = [submission(number, prompt=list(range(5 + number, 25)), **row) for number in range(3)]
    limits = {"max_model_len": 96, "kv_cache_tokens": 104, "page_size": 8}
    engine = ranks(sdar_tiny, **limits)
    assert outputs(engine, *asked) == on_one(sdar_tiny, asked, **limits)
    assert engine.stats().preemptions


def test_keys_are_judged_moved_and_relayed_by_all(ranks, submission, dream_tiny, llada_tiny):
    prompt = [number * 7 % 200 for number in range(60)]
    row = {"prompt": prompt, "gen_length": 48, "cache": "dual", "threshold": 0.3, "block_length": 8}
    judged = [submission("judged", **row, ignore_eos=True, kv_budget=40, kv_buffer=32, kv_score="rkv", kv_sink=2)]
    assert outputs(ranks(dream_tiny, page_size=5), *judged) == on_one(dream_tiny, judged, page_size=5)

    def relayed(engine):
        source = relaying.canvas_of(engine, relaying.asked("source", relaying.TEXT))
        taker = relaying.asked("taker", [*relaying.OTHER[:9], *source, 5], relay_from=("source",), relay_recompute=0.0)
        return relaying.ended(engine, taker)["taker"]

    limits = {"relay_tokens": 4096, "page_size": 8}
    assert relayed(ranks(llada_tiny, **limits)) == relayed(load(settings(llada_tiny, **limits)))


@pytest.mark.parametrize(
    ("number", "place"),
    [(1, "attention.out"), *(pytest.param(*at, marks=pytest.mark.slow) for at in ((0, "mlp_norm"), (1, "norm")))],
)
def test_a_failure_of_one_rank_is_one_of_all(two, ranks, crowd, undisturbed, monkeypatch, number, place):
    """Memory that runs out on either rank, in the middle of a forward or in the head: nobody notices."""
    some = crowd[0], crowd[2]
    model = ranks.model(two, number)
    times = iter([False] * 3 + [True] + [False] * 2 + [True])
    held, are_free, give_up = [], [], Group.give_up

    def fail(*_):
        if next(times, False):
            tensor = torch.zeros(1)
            held.append(weakref.ref(tensor))
            raise MemoryError("injected")

    def seen(group, rest):
        are_free.append(held[-1]() is None)
        give_up(group, rest)

    monkeypatch.setattr(Group, "give_up", seen)

    hook = model.get_submodule(place if place == "norm" else f"blocks.1.{place}").register_forward_pre_hook(fail)
    try:
        made = outputs(two, *some)
    finally:
        hook.remove()
    assert next(times, None) is None, "it has failed"
    assert are_free == [True, True], "what has failed holds no memory when its rank gives up"
    assert made == {one.request_id: undisturbed[one.request_id] for one in some}


def test_a_request_that_one_rank_cannot_compute_fails_alone(two, ranks, crowd, undisturbed):
    """Whatever step it is in: those that it is in without others end it, and only it."""
    only, other = crowd[:2]
    alone = len(only.prompt_ids) + only.sampling.max_tokens

    def fail(_, inputs):
        if len(inputs[0]) == alone:
            raise RuntimeError("injected")

    hook = ranks.model(two, 1).blocks[0].mlp_norm.register_forward_pre_hook(fail)
    try:
        [last] = outputs(two, only)[only.request_id]
    finally:
        hook.remove()
    assert last.finish_reason is FinishReason.ERROR
    assert outputs(two, other)[other.request_id] == undisturbed[other.request_id], "the ranks are in step"


def test_the_best_token_of_all_ranks():
    logits = torch.randn(9, 12, generator=torch.Generator().manual_seed(0)) * 5
    logits[0, [2, 7]] = 30.0  # of equals the first
    logits[1, 11] = 60.0
    logits[2, 4] = torch.nan
    parts = []
    for number, part in enumerate(logits.split(4, dim=1)):
        tokens, odds = best_token(part.clone(), None)
        best = part.gather(1, tokens[:, None]).squeeze(1).double()
        parts.append(torch.stack(((tokens + 4 * number).double(), best, best - odds)))
    tokens, odds = best_of_all(torch.stack(parts, dim=1))
    expected, expected_odds = best_token(logits.clone(), None)
    assert odds[2].isnan()
    some = torch.arange(9) != 2
    assert torch.equal(tokens[some], expected[some])
    torch.testing.assert_close(odds[some], expected_odds[some])


@pytest.mark.slow
def test_a_follower_that_is_loading_ends_with_rank_0():
    code = "from engine.execution.ranks import __main__ as own; import sys, threading, time;"
    code += "threading.Thread(target=own.end_with_rank_0, args=[int(sys.argv[1])], daemon=True).start();"
    code += "print(flush=True); time.sleep(200)"
    ours, theirs = Pipe()
    command = [sys.executable, "-c", code, str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE) as process:
        theirs.close()
        assert process.stdout.readline() == b"\n"
        assert process.poll() is None
        ours.close()
        assert process.wait(60) == 0


def test_a_row_is_summed_alike_alone_and_in_company(tmp_path):
    """Of four ranks, between whose parts of 64 numbers the order of additions is seen in a quarter of them."""
    parts = torch.randn(4, 7, 64, generator=torch.Generator().manual_seed(1))

    def sums(number):
        group = Group(Rank(number, 4), tmp_path, torch.device("cpu"))
        group.seen = []  # what is noted here of all groups
        return group.sum(parts[number].clone()), group.sum(parts[number, 3:4].clone())

    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(sums, range(4)))
    assert torch.allclose(made[0][0], parts.sum(dim=0), atol=1e-5)
    for whole, alone in made:
        assert torch.equal(whole, made[0][0])
        assert torch.equal(alone, whole[3:4])


def test_sizes_that_do_not_divide(llada_tiny, sdar_moe_tiny):
    with pytest.raises(ConfigError, match=r"is 8, .*: it has 4 attention heads, 260 tokens of the vocabulary$"):
        load(settings(llada_tiny, tensor_parallel_size=8))
    with pytest.raises(ConfigError, match=r"is 3, .*2 heads of keys and values$"):
        load(settings(sdar_moe_tiny, tensor_parallel_size=3))
    with pytest.raises(ConfigError, match="takes the devices from cuda:0 on"):
        settings(llada_tiny, tensor_parallel_size=2, device="cuda:1")
    with pytest.raises(ConfigError, match="compile is true, and tensor_parallel_size is 2"):
        settings(llada_tiny, tensor_parallel_size=2, compile=True)
    with pytest.raises(ConfigError, match="quantization is 'int8', and tensor_parallel_size is 2"):
        settings(llada_tiny, tensor_parallel_size=2, quantization="int8")


@pytest.fixture
def processes(llada_tiny, monkeypatch):
    """An engine whose follower is a process of its own, and that process."""
    started = []
    monkeypatch.setattr(
        "engine.assemble.start_processes", lambda size: started.append(start_processes(size)) or started[0]
    )
    engine = load(settings(llada_tiny, tensor_parallel_size=2))
    yield engine, started[0]
    started[0].close()


@pytest.mark.slow
def test_a_follower_that_is_killed(processes, crowd):
    """No call succeeds any more, and an idle engine knows it too: its thread ends, and with it the server."""
    engine, followers = processes
    [process] = followers.processes
    engine.submit(engine.new_request(crowd[0]))
    process.terminate()  # a supervisor tells all processes to end: a follower waits for rank 0
    for _ in range(3):
        engine.step()
        engine.check()
    process.kill()
    process.wait(10)
    with pytest.raises(DeviceLost, match="rank 1 has ended"):
        engine.check()
    with pytest.raises(DeviceLost):
        engine.step()
