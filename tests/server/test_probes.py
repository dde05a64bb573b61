"""What machines ask: models, health, readiness, metrics."""

from prometheus_client.parser import text_string_to_metric_families

from engine import FinishReason


async def test_models_are_listed_the_default_first(api):
    listed = (await api.client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["fake", "org/fake"]
    for card in listed["data"]:
        assert card["object"] == "model"
        assert card["owned_by"] == "unmask"
        assert isinstance(card["created"], int)
        assert card["max_model_len"] == 128
        assert (await api.client.get(f"/v1/models/{card['id']}")).json() == card


async def test_an_unknown_model_has_no_card(api):
    assert api.error_of(await api.client.get("/v1/models/gpt/4"), 404)["code"] == "model_not_found"


async def test_health_is_the_engines_heartbeat(api, engine):
    assert (await api.client.get("/health")).status_code == 200
    engine.accepting = False
    assert (await api.client.get("/health")).status_code == 200
    engine.healthy = False
    response = await api.client.get("/health")
    api.error_of(response, 503)
    assert response.headers["retry-after"]


async def test_ready_while_requests_are_taken(api, engine):
    assert (await api.client.get("/ready")).status_code == 200
    engine.healthy = False
    api.error_of(await api.client.get("/ready"), 503)
    engine.healthy, engine.accepting = True, False
    api.error_of(await api.client.get("/ready"), 503)


async def test_metrics_are_the_engines_statistics(api):
    response = await api.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    assert all(name.startswith("unmask_") and family.documentation for name, family in families.items())
    samples = {
        sample.name: sample
        for family in families.values()
        for sample in family.samples
        if "reason" not in sample.labels
    }
    assert {name: sample.value for name, sample in samples.items()} == {
        "unmask_requests_running": 2,
        "unmask_requests_waiting": 3,
        "unmask_kv_pages_used": 5,
        "unmask_kv_pages_capacity": 128,
        "unmask_prompt_tokens_total": 13,
        "unmask_generation_tokens_total": 17,
        "unmask_forwards_total": 70,
        "unmask_rows_computed_total": 1100,
        "unmask_requests_rejected_total": 23,
    }
    assert all(sample.labels == {"model_name": "fake"} for sample in samples.values())
    finished = {sample.labels["reason"]: sample.value for sample in families["unmask_requests_finished"].samples}
    assert finished == {reason: 19 if reason is FinishReason.STOP else 0 for reason in FinishReason}


async def test_the_schema_can_be_read(api):
    schema = (await api.client.get("/openapi.json")).json()
    for path in ("/v1/completions", "/v1/chat/completions"):
        responses = schema["paths"][path]["post"]["responses"]
        assert set(responses) == {"200", "400", "401", "404", "413", "415", "429", "500", "503"}
        assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
    assert "HTTPValidationError" not in schema["components"]["schemas"]
