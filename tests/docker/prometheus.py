"""What these tests ask a running Prometheus."""

import math

import httpx

INTERVAL = "20s"
"""In place of Grafana's `$__rate_interval`: four scrapes and more."""


def ask(url, expression):
    """The samples of an instant query; raises AssertionError where Prometheus finds fault with it."""
    answer = httpx.get(f"{url}/api/v1/query", params={"query": expression}, timeout=30).json()
    assert answer["status"] == "success", f"{expression}: {answer}"
    return [float(sample["value"][1]) for sample in answer["data"]["result"]]


def filled_in(expression, model):
    """As Grafana would ask it."""
    expression = expression.replace("$__rate_interval", INTERVAL).replace("$model_name", model)
    assert "$" not in expression, expression
    return expression


def unanswered(url, queries, model="llada-tiny"):
    """Those that find nothing, or nothing but NaN."""
    answers = {name: ask(url, filled_in(expression, model)) for name, expression in queries}
    return [name for name, values in answers.items() if not values or all(map(math.isnan, values))]


def load(client, stop):
    """Requests of every kind until told to stop: streams, whole answers, stop strings, errors, hang-ups."""
    number = 0
    while not stop.is_set():
        number += 1
        body = {"prompt": [5, 6, 7] * (1 + number % 9), "max_tokens": 70, "stream": bool(number % 2)}
        body["diffusion"] = {"cache": ("dual", "prefix", "d2")[number % 3], "threshold": 0.5}
        if number % 7 == 0:
            with client.stream("POST", "/v1/completions", json={**body, "stream": True, "ignore_eos": True}):
                continue
        client.post("/v1/completions", json=body)
        if number % 5 == 0:
            client.get("/v1/models/unknown")
