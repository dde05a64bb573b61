"""Metrics, rules and dashboards against a real Prometheus that scrapes a real server under load."""

import json
import re
import subprocess
import threading
import time

import httpx
import pytest
import yaml

from .conftest import DOCKER
from .prometheus import INTERVAL, load, unanswered

PROMETHEUS = DOCKER / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))


def query(name, quantile=None):
    """A query of vLLM's published dashboard (examples/observability/prometheus_grafana) for one of its metrics."""
    selector = f'{{model_name="$model_name"}}[{INTERVAL}]'
    if quantile is None:
        return f"rate(vllm:{name}_sum{selector}) / rate(vllm:{name}_count{selector})"
    return f"histogram_quantile({quantile}, sum by(le) (rate(vllm:{name}_bucket{selector})))"


LATENCIES = (
    "e2e_request_latency_seconds",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_time_per_output_token_seconds",
)
VLLM_QUERIES = [
    *(query(name, quantile) for name in LATENCIES for quantile in (0.99, 0.95, 0.9, 0.5)),
    *(query(name) for name in LATENCIES),
    'rate(vllm:prompt_tokens_total{model_name="$model_name"}[$__rate_interval])',
    'rate(vllm:generation_tokens_total{model_name="$model_name"}[$__rate_interval])',
    'vllm:num_requests_running{model_name="$model_name"}',
    'vllm:num_requests_waiting{model_name="$model_name"}',
    'vllm:kv_cache_usage_perc{model_name="$model_name"}',
    'sum by(le) (increase(vllm:request_prompt_tokens_bucket{model_name="$model_name"}[$__rate_interval]))',
    'sum by(le) (increase(vllm:request_generation_tokens_bucket{model_name="$model_name"}[$__rate_interval]))',
    'sum by(finished_reason) (increase(vllm:request_success_total{model_name="$model_name"}[$__rate_interval]))',
    'rate(vllm:request_queue_time_seconds_sum{model_name="$model_name"}[$__rate_interval])',
    'rate(vllm:request_prefill_time_seconds_sum{model_name="$model_name"}[$__rate_interval])',
    'rate(vllm:request_decode_time_seconds_sum{model_name="$model_name"}[$__rate_interval])',
    'rate(vllm:request_max_num_generation_tokens_sum{model_name="$model_name"}[$__rate_interval])',
]


@pytest.mark.slow
def test_rules_and_scrape_config_are_valid(tool):
    promtool = tool("promtool")
    subprocess.run([promtool, "check", "config", PROMETHEUS / "prometheus.yml"], check=True)
    subprocess.run([promtool, "check", "rules", *RULES], check=True)


@pytest.mark.slow
def test_rules_do_what_their_unit_tests_say(tool):
    tests = sorted((PROMETHEUS / "tests").glob("*.test.yml"))
    assert tests
    subprocess.run([tool("promtool"), "test", "rules", *tests], check=True)


def test_every_rule_has_a_unit_test():
    rules = [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
    tests = [
        test for path in (PROMETHEUS / "tests").glob("*.test.yml") for test in yaml.safe_load(path.read_text())["tests"]
    ]
    fired = {check["alertname"] for test in tests for check in test.get("alert_rule_test", ()) if check["exp_alerts"]}
    silent = {
        check["alertname"] for test in tests for check in test.get("alert_rule_test", ()) if not check["exp_alerts"]
    }
    recorded = {check["expr"] for test in tests for check in test.get("promql_expr_test", ())}
    assert {rule["alert"] for rule in rules if "alert" in rule} == fired == silent
    assert {rule["record"] for rule in rules if "record" in rule} == recorded


def client(url, stop):
    with httpx.Client(base_url=url, timeout=60) as http:
        load(http, stop)


@pytest.fixture(scope="module")
def recorded():
    """The names of the series of the recording rules."""
    rules = yaml.safe_load((PROMETHEUS / "rules" / "recording.yml").read_text())["groups"][0]["rules"]
    return [rule["record"] for rule in rules]


@pytest.fixture(scope="module")
def asked(panels, recorded):
    """All that these tests ask Prometheus."""
    return [*(expression for _, expression in panels), *VLLM_QUERIES, *recorded]


@pytest.fixture(scope="module")
def measured(serve, llada_tiny, tool, free_port, background, tmp_path_factory, asked):
    """(Prometheus' URL, the server's URL) once Prometheus has seen load, until it can answer or a minute is over."""
    folder = tmp_path_factory.mktemp("prometheus")
    with serve(str(llada_tiny), "--metrics-compat", "vllm") as server:
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(path) for path in RULES]
        [scrape] = config["scrape_configs"]
        del scrape["file_sd_configs"]
        scrape["static_configs"] = [{"targets": [server.removeprefix("http://")]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        address = f"127.0.0.1:{free_port()}"
        command = [
            tool("prometheus"),
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={address}",
        ]
        with background(command, f"http://{address}/-/ready", folder / "log"):
            stop = threading.Event()
            clients = [threading.Thread(target=client, args=(server, stop)) for _ in range(3)]
            for thread in clients:
                thread.start()
            try:
                for _ in range(60):
                    time.sleep(1)
                    if not unanswered(f"http://{address}", [(one, one) for one in asked]):
                        break
                yield f"http://{address}", server
            finally:
                stop.set()
                for thread in clients:
                    thread.join()


@pytest.mark.slow
def test_every_panel_has_data(measured, panels):
    assert len(panels) > 50
    assert unanswered(measured[0], [(f"{title}: {expression}", expression) for title, expression in panels]) == []


@pytest.mark.slow
def test_vllms_published_queries_have_data(measured):
    assert unanswered(measured[0], [(expression, expression) for expression in VLLM_QUERIES]) == []


@pytest.mark.slow
def test_every_recorded_series_has_data(measured, recorded):
    assert unanswered(measured[0], [(name, name) for name in recorded]) == []


@pytest.mark.slow
def test_no_alert_fires_under_ordinary_load(measured):
    alerts = httpx.get(f"{measured[0]}/api/v1/alerts").json()["data"]["alerts"]
    assert [alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"] == []
    rules = httpx.get(f"{measured[0]}/api/v1/rules").json()["data"]["groups"]
    assert {rule["health"] for group in rules for rule in group["rules"]} == {"ok"}


@pytest.mark.slow
def test_promtool_finds_no_fault_with_the_metrics(measured, tool):
    """With no alias: a colon is for recording rules, which is why they are opt-in."""
    text = httpx.get(f"{measured[1]}/metrics").text
    own = "".join(line + "\n" for line in text.splitlines() if not re.match(r"(# \w+ )?vllm:", line))
    assert own.count("# TYPE unmask_") > 30
    subprocess.run([tool("promtool"), "check", "metrics"], input=own, text=True, check=True)


def test_the_dashboard_is_one_that_grafana_can_provision():
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "unmask.json").read_text())
    assert dashboard["id"] is None
    assert [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"] == [
        "Service",
        "Diffusion",
        "Capacity",
    ]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    cells = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in mine) < 24
        assert not mine & cells, f"{panel['title']} lies over another panel"
        cells |= mine
        if panel["type"] != "row":
            assert panel["description"].endswith(".")
            assert panel["datasource"]["uid"] == "${DS_PROMETHEUS}"
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard))) - {"__rate_interval"}
    assert used == variables


def test_provisioning_points_at_what_compose_mounts():
    grafana = DOCKER / "grafana" / "provisioning"
    [source] = yaml.safe_load((grafana / "datasources" / "prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((grafana / "dashboards" / "dashboards.yml").read_text())["providers"]
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services
    targets = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert provider["options"]["path"] in targets
    assert "/etc/grafana/provisioning" in targets
