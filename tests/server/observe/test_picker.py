"""What the endpoint picker of the Gateway API's inference extension finds in /metrics, by the rules of its reader.

Its core-metrics-extractor looks families up by the name in their `# TYPE` line, takes the latest sample of each (the
first of those without a time), reads values of gauges and counters, and sizes of the cache from labels, as integers.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import httpx
import pytest
import yaml

from engine import EngineConfig, EngineLoop, load
from server.http.app import create_app
from server.settings.sources import load_settings

GATEWAY = Path(__file__).parents[3] / "docker" / "k8s" / "gateway"
CONFIG = yaml.safe_load((GATEWAY / "config.yaml").read_text())
ENVIRON = {
    variable["name"]: variable["value"]
    for container in yaml.safe_load((GATEWAY / "metrics.yaml").read_text())["spec"]["template"]["spec"]["containers"]
    for variable in container["env"]
}
SPECS = {
    "queuedRequestsSpec": "vllm:num_requests_waiting",
    "runningRequestsSpec": "vllm:num_requests_running",
    "kvUsageSpec": "vllm:kv_cache_usage_perc",
    "cacheInfoSpec": "vllm:cache_config_info",
}
"""What it reads of vLLM if it is told nothing."""
LABEL = r'(\w+)="((?:[^"\\]|\\.)*)"'
SAMPLE = re.compile(rf"(?P<name>[\w:]+)(?:{{(?P<labels>(?:{LABEL},?)*)}})? (?P<value>\S+)(?: (?P<time>\d+))?")


class Sample(NamedTuple):
    labels: dict[str, str]
    value: float
    time: int


def families(text: str) -> dict[str, tuple[str, list[Sample]]]:
    """Name -> (type, samples), of families of which each sample has the family's own name."""
    found: dict[str, tuple[str, list[Sample]]] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in found, "a family that comes twice ends the picker's reading"
            found[name] = (kind, [])
        elif not line.startswith("#"):
            parsed = SAMPLE.fullmatch(line)
            assert parsed, line
            if parsed["name"] in found:
                labels = dict(re.findall(LABEL, parsed["labels"] or ""))
                sample = Sample(labels, float(parsed["value"]), int(parsed["time"] or 0))
                found[parsed["name"]][1].append(sample)
    return found


def latest(found: dict[str, tuple[str, list[Sample]]], name: str) -> Sample:
    """Raises LookupError where the picker would note an error and keep what it had."""
    kind, samples = found[name]
    sample = max(samples, key=lambda sample: sample.time)
    return sample if kind in ("gauge", "counter") else sample._replace(value=0)


def read(text: str, engine_config: dict[str, str]) -> dict[str, float]:
    """What the picker then knows of the pod."""
    found = families(text)
    cache = latest(found, engine_config["cacheInfoSpec"]).labels
    return {
        "waiting": int(latest(found, engine_config["queuedRequestsSpec"]).value),
        "running": int(latest(found, engine_config["runningRequestsSpec"]).value),
        "kv_usage": latest(found, engine_config["kvUsageSpec"]).value,
        "block_size": int(cache["block_size"]),
        "num_blocks": int(cache["num_gpu_blocks"]),
    }


@pytest.fixture
def engine_config():
    """That of the manifests."""
    [extractor] = [plugin for plugin in CONFIG["plugins"] if plugin["type"] == "core-metrics-extractor"]
    [config] = extractor["parameters"]["engineConfigs"]
    assert config["name"] == extractor["parameters"]["defaultEngine"], "pods need no label then"
    return config


@pytest.fixture
async def client(engine, tokenizer, tmp_path):
    """A server with the settings of the manifests; the picker brings no key."""
    (tmp_path / "api-keys").write_text("a-key\n")
    settings_file = str(GATEWAY.parent / "settings.yaml")
    settings = load_settings(["--config", settings_file, "--api-key-file", str(tmp_path / "api-keys")], ENVIRON)
    app = create_app(cast(EngineLoop, engine), tokenizer, settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://10.0.0.7:8000") as client:
        yield client


async def test_it_finds_load_and_sizes_of_the_cache(client, engine, engine_config):
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert read(answer.text, engine_config) == {
        "waiting": 3,
        "running": 2,
        "kv_usage": 5 / 128,
        "block_size": 32,
        "num_blocks": 128,
    }
    engine.stats = replace(engine.stats, waiting=0, running=1)
    now = read((await client.get("/metrics")).text, engine_config)
    assert (now["waiting"], now["running"]) == (0, 1)


async def test_it_finds_one_sample_of_each_so_that_none_is_the_latest_by_chance(client, engine_config):
    found = families((await client.get("/metrics")).text)
    for name in SPECS.values():
        kind, samples = found[name]
        assert (kind, len(samples), samples[0].time) == ("gauge", 1, 0), name


@pytest.mark.parametrize(("used", "share"), [(0, 0), (32, 0.25), (128, 1)])
async def test_use_of_the_cache_is_a_share(client, engine, engine_config, used, share):
    engine.stats = replace(engine.stats, kv_pages_used=used)
    assert read((await client.get("/metrics")).text, engine_config)["kv_usage"] == share


def test_the_manifests_name_what_it_reads_of_vllm_but_for_adapters(engine_config):
    assert engine_config == {"name": "unmask", **SPECS, "loraSpec": ""}


async def test_adapters_there_are_none(client):
    assert "vllm:lora_requests_info" not in (await client.get("/metrics")).text


def test_pages_of_a_real_pool_are_the_blocks_that_it_is_told_of(llada_tiny):
    engine = load(EngineConfig(model=str(llada_tiny)))
    assert engine.info.kv_tokens // engine.info.page_size == engine.stats().kv_pages_total
