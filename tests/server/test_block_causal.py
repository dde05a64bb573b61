"""Block-causal models over HTTP: golden rows, prompts that are computed once, who shares them, what is refused."""

import asyncio
import json
from contextlib import asynccontextmanager, closing
from dataclasses import replace

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine import DiffusionParams, EngineConfig, EngineLoop, load, resolved
from server.cli import main
from server.commands import serve as serve_command
from server.prompts.convert import cache_salt
from server.settings.sources import load_settings
from server.text.tokenizer import Tokenizer

LONG = [7 + number % 200 for number in range(100)]
"""A prompt of three whole pages and a bit."""
WHOLE_PAGES = 96


@pytest.fixture(scope="session")
def sdar_server(serve, sdar_tiny):
    """The URL of a server of the tiny SDAR checkpoint, with no flags."""
    with serve(str(sdar_tiny)) as url:
        yield url


@pytest.fixture(scope="module")
def sdar_tokenizer(sdar_tiny):
    with closing(Tokenizer.load(sdar_tiny)) as tokenizer:
        yield tokenizer


@pytest.fixture
def sdar(listening, sdar_tiny, sdar_tokenizer):
    """`async with sdar(**settings) as http`: a client of a server in this process."""

    @asynccontextmanager
    async def running(config=(), **settings):
        engine = EngineLoop(load(EngineConfig(model=str(sdar_tiny), **dict(config))))
        async with listening(engine, sdar_tokenizer, **settings) as (url, _), httpx.AsyncClient(base_url=url) as http:
            yield http

    return running


def rows_of(folder):
    """Golden rows that were drawn from what the model itself says."""
    rows = json.loads((folder / "generations.json").read_text())
    return [row for row in rows if (row["temperature"], row["top_k"], row["top_p"]) == (1.0, 0, 1.0)]


def body_of(row):
    names = {"threshold": row["threshold"], "gamma": row["eb_threshold"]}
    return {
        "prompt": row["prompt"],
        "max_tokens": len(row["output"]),
        "stop_token_ids": row["stop_ids"],
        "ignore_eos": True,
        "return_token_ids": True,
        "diffusion": {
            "unmask": row["strategy"],
            "block_length": row["block_length"],
            "denoising_steps": row["steps"],
            **{name: value for name, value in names.items() if value is not None},
        },
    }


def answer_of(row):
    """The published output up to the token that ends it: that sampler writes the whole block."""
    stops = [place for place, token in enumerate(row["output"]) if token in row["stop_ids"]]
    return row["output"][: stops[0]] if stops else row["output"]


async def cached(http, path="completions", **body):
    """`cached_tokens` of an answer, whose prompt is `LONG` if the body has none."""
    body = {"max_tokens": 4, **body}
    if path == "completions":
        body = {"prompt": LONG, **body}
    key = body.pop("key", None)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    response = await http.post(f"/v1/{path}", json=body, headers=headers)
    assert response.status_code == 200, response.text
    usage = response.json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]
    return usage["prompt_tokens_details"]["cached_tokens"]


def refusal(url, **body):
    """(`param`, message) of the 400 that this completion gets."""
    response = httpx.post(f"{url}/v1/completions", json={"prompt": LONG, "max_tokens": 8, **body})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    return error["param"], error["message"]


@pytest.mark.slow
async def test_golden_rows_come_out_in_one_running_batch(sdar_server, sdar_tiny):
    rows = rows_of(sdar_tiny)[::4]
    assert len({row["strategy"] for row in rows}) == 4
    async with httpx.AsyncClient(base_url=sdar_server, timeout=60) as http:
        answers = await asyncio.gather(*(http.post("/v1/completions", json=body_of(row)) for row in rows))
    for row, answer in zip(rows, answers, strict=True):
        [choice] = answer.json()["choices"]
        assert choice["token_ids"] == answer_of(row), row["id"]


def test_a_chat_is_the_completion_of_its_prompt(sdar_server):
    body = {"max_tokens": 12, "return_token_ids": True, "ignore_eos": True}
    messages = [{"role": "user", "content": "a " * 40}]
    chat = httpx.post(f"{sdar_server}/v1/chat/completions", json={"messages": messages, **body}).json()
    plain = httpx.post(f"{sdar_server}/v1/completions", json={"prompt": chat["prompt_token_ids"], **body}).json()
    assert chat["choices"][0]["token_ids"] == plain["choices"][0]["token_ids"]
    assert chat["choices"][0]["message"]["content"] == plain["choices"][0]["text"]
    assert plain["usage"]["prompt_tokens_details"]["cached_tokens"] > 0, "both routes have one cache"


def test_choices_log_probabilities_and_stop_strings(sdar_server):
    body = {"prompt": LONG, "max_tokens": 8, "temperature": 1, "seed": 3}

    def ask(**more):
        return httpx.post(f"{sdar_server}/v1/completions", json={**body, **more}).json()["choices"]

    choices = ask(n=2, best_of=3, logprobs=2)
    assert [len(choice["logprobs"]["tokens"]) for choice in choices] == [8, 8]
    [plain] = ask()
    stop = plain["text"][2:4]
    [stopped] = ask(stop=stop)
    assert (stopped["text"], stopped["stop_reason"]) == (plain["text"].partition(stop)[0], stop)


@pytest.mark.parametrize(
    ("asked", "cache"), [({}, "block"), ({"cache": "auto"}, "block"), ({"cache": "sub_block"}, "sub_block")]
)
def test_usage_tells_the_effective_policies(sdar_server, asked, cache):
    body = {"prompt": LONG, "max_tokens": 4, "diffusion": {"lookahead": 64, **asked}}
    told = httpx.post(f"{sdar_server}/v1/completions", json=body).json()["usage"]["diffusion"]
    assert (told["cache"], told["lookahead"]) == (cache, 0)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"diffusion": {"cache": "dual"}}, "diffusion.cache", "Caches that fit it: block, sub_block"),
        ({"diffusion": {"unmask": "cad"}}, "diffusion.unmask", "block-causal"),
        ({"diffusion": {"sub_block_length": 3}}, "diffusion.sub_block_length", "does not divide"),
        ({"suffix": " end"}, "suffix", "cannot see what stands behind"),
        ({"prompt": "a<|fill:4|>b", "max_tokens": None}, "prompt", "Infilling"),
        ({"echo": True, "logprobs": 1}, "logprobs", "`echo`"),
        ({"echo": True, "logprobs": 0, "max_tokens": 0}, "logprobs", "`echo`"),
        ({"cache_salt": "s" * 513}, "cache_salt", "512"),
        ({"cache_salt": 5}, "cache_salt", "string"),
    ],
)
def test_what_cannot_be_is_a_400_with_its_field(sdar_server, body, param, words):
    told, message = refusal(sdar_server, **body)
    assert told == param
    assert words in message


def test_echo_alone_is_served(sdar_server):
    answer = httpx.post(f"{sdar_server}/v1/completions", json={"prompt": "ab", "max_tokens": 4, "echo": True}).json()
    assert answer["choices"][0]["text"].startswith("ab")


async def test_the_second_request_finds_the_prompt(sdar):
    async with sdar() as http:
        assert [await cached(http) for _ in range(3)] == [0, WHOLE_PAGES, WHOLE_PAGES]
        assert await cached(http, prompt=LONG[:70]) == 64, "whole pages alone are shared"
        assert await cached(http, prompt=[9, *LONG]) == 0
        assert await cached(http, prompt=LONG, diffusion={"block_length": 8}) == 0, "other blocks, other keys"
        messages = [{"role": "user", "content": "a " * 40}]
        chats = [await cached(http, "chat/completions", messages=messages) for _ in range(2)]
        assert chats[0] == 0 < chats[1]


async def test_prompts_and_choices_are_counted_as_prompt_tokens_are(sdar):
    async with sdar() as http:
        assert await cached(http, n=4) == 0, "siblings compute their prompt once, and nobody had before"
        assert await cached(http, n=4) == WHOLE_PAGES
        assert await cached(http, prompt=[LONG, [3, 4, 5], LONG]) == 2 * WHOLE_PAGES
        assert await cached(http, n=2, best_of=3) == WHOLE_PAGES


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
async def test_a_stream_tells_it_with_its_usage(sdar, path):
    asked = {"messages": [{"role": "user", "content": "a " * 40}]} if "chat" in path else {"prompt": LONG}
    body = {**asked, "max_tokens": 8, "stream": True, "stream_options": {"include_usage": True}}
    told = []
    async with sdar() as http:
        for _ in range(2):
            *_, last, _ = (await http.post(f"/v1/{path}", json=body)).text.strip().split("\n\n")
            told.append(json.loads(last.removeprefix("data: "))["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert told[0] == 0 < told[1]


async def test_salts_share_nothing(sdar):
    async with sdar() as http:
        assert [await cached(http, cache_salt="a") for _ in range(2)] == [0, WHOLE_PAGES]
        assert [await cached(http, cache_salt="b") for _ in range(2)] == [0, WHOLE_PAGES]
        assert await cached(http) == 0
        assert await cached(http, cache_salt=None) == await cached(http, cache_salt="") == WHOLE_PAGES


async def test_api_keys_share_nothing(sdar):
    async with sdar(api_key=["one", "two"]) as http:
        for key in ("one", "two"):
            assert [await cached(http, key=key) for _ in range(2)] == [0, WHOLE_PAGES]
            assert [await cached(http, key=key, cache_salt="a") for _ in range(2)] == [0, WHOLE_PAGES]


def test_a_salt_cannot_say_another_tenant():
    tenants, salts = ("", "aa", "aabb"), ("", "bb", ":", "aa", "aa:", "aa:bb", ":aa")
    assert len({cache_salt(tenant, salt) for tenant in tenants for salt in salts}) == len(tenants) * len(salts)
    assert cache_salt("aa", "bb") == cache_salt("aa", "bb")


async def test_metrics_tell_what_was_found(sdar):
    async with sdar() as http:
        await cached(http)
        await cached(http)
        text = (await http.get("/metrics")).text
    values = {sample.name: sample for family in text_string_to_metric_families(text) for sample in family.samples}
    assert values["unmask_prompt_tokens_looked_up_total"].value == 2 * len(LONG)
    assert values["unmask_prompt_tokens_found_total"].value == WHOLE_PAGES
    assert values["unmask_kv_pages_kept"].value >= WHOLE_PAGES / 32
    assert values["unmask_preemptions_total"].value == 0
    labels = values["unmask_config_info"].labels
    assert (labels["default_cache"], labels["default_lookahead"], labels["prefix_caching"]) == ("block", "0", "true")


@pytest.mark.slow
async def test_a_full_pool_preempts_and_says_so(sdar):
    """Four answers outgrow a pool in which their prompts have room; each gets what it gets alone."""
    prompts = [[number, *LONG[:30]] for number in range(1, 5)]
    body = {"max_tokens": 60, "ignore_eos": True, "return_token_ids": True}
    async with sdar({"kv_cache_tokens": 256, "max_model_len": 128}) as http:

        async def ask(prompt):
            answer = (await http.post("/v1/completions", json={"prompt": prompt, **body}, timeout=60)).json()
            return answer["choices"][0]["token_ids"]

        together = await asyncio.gather(*map(ask, prompts))
        metrics = (await http.get("/metrics")).text
        assert [await ask(prompt) for prompt in prompts] == together
    [preempted] = [line for line in metrics.splitlines() if line.startswith("unmask_preemptions_total")]
    assert float(preempted.split()[-1]) > 0


async def test_what_only_choices_of_one_prompt_share_is_not_cached(sdar):
    """Whether the prompt comes at once or in parts."""
    for rows in (2048, 32):
        async with sdar({"max_batch_rows": rows, "max_running_requests": 4, "page_size": 8}) as http:
            assert await cached(http, n=3) == 0
            assert await cached(http, n=3) == WHOLE_PAGES


async def test_without_prefix_caching_nothing_is_found(sdar, sdar_tiny):
    asked = load_settings([str(sdar_tiny), "--no-prefix-caching"], {}).engine
    async with sdar({"prefix_caching": asked.prefix_caching}) as http:
        assert [await cached(http) for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("setting", "value", "fitting"),
    [
        ("cache", "dual", "block, sub_block"),
        ("unmask", "cad", "threshold"),
        ("sub_block_length", "3", "divide"),
    ],
)
def test_defaults_that_do_not_fit_end_the_start(sdar_tiny, monkeypatch, capsys, flags, setting, value, fitting):
    monkeypatch.setattr(serve_command, "load", None)  # no weight is read
    assert main(["serve", str(sdar_tiny), f"--diffusion.{setting}", value, *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"diffusion.{setting} is" in error
    assert fitting in error


def test_a_default_block_that_no_step_can_hold_ends_the_start(sdar_tiny, monkeypatch, capsys):
    monkeypatch.setattr(serve_command, "load", None)
    assert main(["serve", str(sdar_tiny), "--diffusion.block_length", "4096", "--max-batch-rows", "512"]) == 2
    assert "diffusion.block_length is 4096; this engine computes at most 512" in capsys.readouterr().err


def test_a_block_causal_cache_does_not_fit_other_models(llada_tiny, capsys):
    assert main(["serve", str(llada_tiny), "--diffusion.cache", "block"]) == 2
    assert "diffusion.cache is 'block'" in capsys.readouterr().err


def test_the_plan_of_memory_knows_the_models_block(sdar_tiny, capsys):
    assert main(["serve", "--dry-run", str(sdar_tiny), "--memory", "24"]) == 0
    assert "blocks of 4 see nothing behind them" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_eval_measures_it_against_its_own_exact_decode(sdar_tiny, capsys):
    asked = ["eval", "--model", str(sdar_tiny), "--tasks", "facts", "--limit", "2", "--max-tokens", "8", "--json"]
    assert main([*asked, "--unmask", "fixed,low_confidence_dynamic"]) == 0
    exact, other = json.loads(capsys.readouterr().out)["rows"]
    assert (exact["cache"], exact["block_length"], exact["agreement"]) == ("block", 4, 1.0)
    assert other["cache"] == "block"
    assert main([*asked, "--cache", "dual"]) == 2
    assert "--cache dual does not fit the model (sdar); these do: block, sub_block" in capsys.readouterr().err


async def test_requests_of_full_attention_tell_their_effective_cache(api, engine):
    answer = (await api.complete(diffusion={"cache": "auto"})).json()
    assert answer["usage"]["diffusion"]["cache"] == "dual"
    [submission] = engine.submissions
    assert submission.diffusion == resolved(replace(DiffusionParams(), threshold=0.8), engine.info.spec)


def test_what_bench_decode_cannot_measure_is_one_line(sdar_tiny, capsys):
    assert main(["bench", "decode", "--model", str(sdar_tiny)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "is block-causal (sdar)" in error
