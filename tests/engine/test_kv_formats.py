"""A pool of codes under the whole engine: every cache policy and family, in company and out of it."""

import pytest
import torch

from engine import ConfigError, EngineConfig, load
from engine.kernels import native
from engine.kernels.attention import attend_rows
from engine.kernels.kv.formats import read, write

from .faulty import FaultyRunner, find, outputs, rows_of

FORMATS = pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
OWN = {"diffusion_gemma_tiny": {"unmask": "renoise", "max_denoising_steps": 4}}
"""What a family decodes by where it takes no other policy."""


def tokens(engine, *asked):
    """Request id -> its tokens. What was computed for them depends on what is shared."""
    return {name: [id_ for one in ends for id_ in one.token_ids] for name, ends in outputs(engine, *asked).items()}


def engine_of(folder, kv_dtype, **settings):
    return load(EngineConfig(model=str(folder), device="cpu", kv_dtype=kv_dtype, **settings))


@pytest.mark.slow
@FORMATS
def test_each_policy_gives_a_request_in_company_what_it_gives_it_alone(llada_tiny, everybody, kv_dtype):
    """All caches and unmask policies side by side, and a pool in which their slots lie anywhere."""
    alone, by_itself = {}, engine_of(llada_tiny, kv_dtype)
    for request in everybody:
        alone |= outputs(by_itself, request)
    engine = engine_of(llada_tiny, kv_dtype, page_size=5)
    assert outputs(engine, *everybody) == alone
    assert outputs(engine, *reversed(everybody)) == alone, "slots that others have written before"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kv_dtype"),
    [("sdar_tiny", "int8"), ("fast_dllm_tiny", "fp8"), ("nemotron_tiny", "fp8"), ("diffusion_gemma_tiny", "int8")],
)
def test_prompts_that_begin_alike_share_codes(request, submission, family, kv_dtype):
    """With a pool that they share, and with one in which requests give way.

    Each format, and each way to commit a block: experts see no codes.
    """
    folder, start = request.getfixturevalue(family), list(range(5, 75))
    row = {"gen_length": 32, "cache": "block", "ignore_eos": True, **OWN.get(family, {})}
    asked = [submission(n, prompt=[*start, 5 + n], **row) for n in range(3)]
    engine = engine_of(folder, kv_dtype, prefix_caching=False)
    expected = tokens(engine, *asked)
    sharing = engine_of(folder, kv_dtype, kv_cache_tokens=256, max_model_len=160)
    assert tokens(sharing, *asked) == expected
    assert tokens(sharing, *asked) == expected
    assert sharing.stats().prompt_tokens_found > 0


@pytest.mark.parametrize(
    ("family", "kv_dtype"),
    [("llada_tiny", "int8"), ("dream_tiny", "fp8"), ("nemotron_tiny", "int8"), ("diffusion_gemma_tiny", "fp8")],
)
def test_the_definition_decodes_the_same(request, submission, family, kv_dtype):
    """Our kernel reads codes a tile at a time; the definition row by row.

    Heads of their own and shared ones, of one size and of two; causal ranges, and windows. A last bit of theirs may
    give a number another code. Random tokens that are drawn again spread that: one step.
    """
    row = {"unmask": "fixed", "steps": 16, **OWN.get(family, {}), "max_denoising_steps": 1}
    asked = submission("one", prompt=list(range(5, 30)), gen_length=32, **row)
    engine = engine_of(request.getfixturevalue(family), kv_dtype)
    assert native.kernel()
    ours = tokens(engine, asked)
    engine.runner.kernel = attend_rows
    assert tokens(engine, asked) == ours


@FORMATS
def test_an_engine_says_what_its_pool_takes(llada_tiny, kv_dtype):
    engine = engine_of(llada_tiny, kv_dtype, kv_cache_tokens=1024)
    geometry, info = engine.runner.model.config, engine.info
    per_token = 2 * geometry.num_layers * geometry.num_kv_heads * (geometry.head_dim + 4)
    assert (info.kv_dtype, info.dtype, info.kv_bytes) == (kv_dtype, "float32", 1024 * per_token)
    assert load(EngineConfig(model=str(llada_tiny), device="cpu")).info.kv_dtype == "float32"


def test_a_format_that_there_is_not(llada_tiny):
    with pytest.raises(ConfigError, match="kv_dtype is 'int4'; it must be one of auto, int8, fp8"):
        engine_of(llada_tiny, "int4")


def test_only_codes_are_pruned(llada_tiny):
    with pytest.raises(ConfigError, match=r"kv_prune is 0\.1, which needs kv_dtype int8 or fp8; it is 'auto'"):
        engine_of(llada_tiny, "auto", kv_prune=0.1)
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"kv_prune is .*; it must lie in \[0, 1\)"):
            engine_of(llada_tiny, "int8", kv_prune=wrong)


@FORMATS
@pytest.mark.parametrize("family", ["llada_tiny", "diffusion_gemma_tiny"])
def test_all_that_an_engine_writes_is_pruned(request, submission, family, kv_dtype):
    """Keys and values of every layer, also where heads are not alike."""
    engine = engine_of(request.getfixturevalue(family), kv_dtype, kv_prune=0.5, kv_cache_tokens=256, max_model_len=128)
    pool = engine.runner.pool
    engine.submit(
        engine.new_request(submission("one", prompt=list(range(5, 30)), gen_length=32, **OWN.get(family, {})))
    )
    engine.step()
    slots = torch.from_numpy(find(engine, "one").slots[:25])
    for layer in range(engine.runner.model.config.num_layers):
        for part in pool.layer(layer):
            sizes = read(part, slots, torch.float32).abs()
            least = sizes.amax(dim=-1, keepdim=True) / 2
            is_zero = sizes == 0
            assert 0.2 < is_zero.float().mean() < 0.95
            assert (is_zero | (sizes > 0.95 * least)).all(), "but for rounding"
    assert engine.info.kv_prune == 0.5


@FORMATS
def test_a_request_that_fails_leaves_no_trace(llada_tiny, submission, kv_dtype):
    """Its slots hold NaN when it ends; whoever gets them, and whoever is beside it, is not disturbed."""
    row = {"prompt": list(range(5, 30)), "gen_length": 32}
    expected = tokens(engine_of(llada_tiny, kv_dtype), submission("sound", **row))
    engine = engine_of(llada_tiny, kv_dtype, kv_cache_tokens=256, max_model_len=128)
    pool = engine.runner.pool

    def fault(batch):
        if not (request := find(engine, "broken")):
            return None
        slots = torch.from_numpy(request.slots)
        for layer in range(len(pool.keys)):
            for part in pool.layer(layer):
                write(part, torch.full((len(slots), *pool.keys.shape[1::2]), torch.nan), slots)
        return rows_of(engine, batch, "broken")

    engine.runner = FaultyRunner(engine.runner, fault)
    broken = submission("broken", **row)
    together = tokens(engine, broken, submission("sound", **row))
    assert together == {"broken": [], **expected}
    assert tokens(engine, submission("sound", **row)) == expected
