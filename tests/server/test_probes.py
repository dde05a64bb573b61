"""What machines ask: models, health, readiness; what they scrape is in `test_metrics.py`."""


async def test_models_are_listed_the_default_first(api):
    listed = (await api.client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert listed["models"] == [], "Codex complains of a list without it"
    assert [card["id"] for card in listed["data"]] == ["fake", "org/fake"]
    for card in listed["data"]:
        assert card["object"] == "model"
        assert card["owned_by"] == "unmask"
        assert isinstance(card["created"], int)
        assert card["max_model_len"] == card["context_length"] == 128
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


async def test_the_schema_can_be_read(api):
    schema = (await api.client.get("/openapi.json")).json()
    for path in ("/v1/completions", "/v1/chat/completions"):
        responses = schema["paths"][path]["post"]["responses"]
        assert set(responses) == {"200", *map(str, (400, 401, 403, 404, 408, 413, 415, 429, 431, 500, 503, 504))}
        assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
    assert "HTTPValidationError" not in schema["components"]["schemas"]
