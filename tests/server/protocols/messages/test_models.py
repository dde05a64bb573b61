"""The names of the served model as Anthropic's clients read them: judged by the SDK's own types."""

import time

import pytest
from httpx import ASGITransport, AsyncClient

from server.http.app import create_app
from server.settings.tree import build
from tests.server.protocols.messages.asking import HEADERS, error_of

NAMES = [f"name-{number}" for number in range(5)]


@pytest.fixture
async def named(engine, tokenizer):
    """A client of a server with five names, of which it was told one twice."""
    app = create_app(engine, tokenizer, build({"served_model_name": [*NAMES, NAMES[0]]}))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test", headers=HEADERS) as client:
        yield client


def page_of(response):
    """A page of the answer, which has all fields that the SDK requires."""
    from anthropic.pagination import SyncPage
    from anthropic.types import ModelInfo
    from anthropic.types.beta import BetaModelInfo

    assert response.status_code == 200, response.text
    body = response.json()
    assert set(body) == {"data", "has_more", "first_id", "last_id"}
    for model in body["data"]:
        ModelInfo.model_validate(model)
        BetaModelInfo.model_validate(model)
    page = SyncPage[ModelInfo].model_validate(body)
    ids = [model.id for model in page.data]
    assert [page.first_id, page.last_id] == ([ids[0], ids[-1]] if ids else [None, None])
    return ids, page.has_more


async def test_each_name_is_a_model(api):
    from anthropic.types import ModelInfo

    ids, has_more = page_of(await api.client.get("/v1/models", headers=HEADERS))
    assert (ids, has_more) == (["fake", "org/fake"], False)
    for id_ in ids:
        response = await api.client.get(f"/v1/models/{id_}", headers=HEADERS)
        assert response.headers["request-id"]
        model = ModelInfo.model_validate(response.json())
        assert (model.type, model.id, model.display_name, model.lifecycle) == ("model", id_, id_, "active")
        assert model.created_at.tzinfo
        assert 0 <= time.time() - model.created_at.timestamp() < 600
        assert model.max_input_tokens == model.max_tokens == 128
        assert "object" not in response.json()


async def test_other_clients_have_openais_form(api):
    for path in ("/v1/models", "/v1/models/fake"):
        response = await api.client.get(path, params={"limit": "none"})
        assert response.json()["object"] in ("list", "model")
        assert "request-id" not in response.headers


@pytest.mark.parametrize(
    ("query", "numbers", "has_more"),
    [
        ("", range(5), False),
        ("limit=5", range(5), False),
        ("limit=2", range(2), True),
        ("limit=2&after_id=name-1", range(2, 4), True),
        ("limit=2&after_id=name-2", range(3, 5), False),
        ("after_id=name-4", range(0), False),
        ("limit=2&before_id=name-4", range(2, 4), True),
        ("limit=2&before_id=name-2", range(2), False),
        ("limit=2&before_id=name-1", range(1), False),
        ("before_id=name-0", range(0), False),
        ("lifecycle[]=active", range(5), False),
        ("lifecycle=retired&lifecycle=active", range(5), False),
        ("lifecycle[]=retired&lifecycle[]=deprecated", range(0), False),
        ("beta=true", range(5), False),
    ],
)
async def test_pages(named, query, numbers, has_more):
    assert page_of(await named.get(f"/v1/models?{query}")) == ([NAMES[number] for number in numbers], has_more)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=many", "limit"),
        ("lifecycle[]=new", "lifecycle.0"),
        ("after_id=gpt", "after_id"),
        ("before_id=gpt", "before_id"),
        ("before_id=name-1&after_id=name-0", "before_id"),
        ("lifecycle[]=retired&after_id=name-0", "after_id"),
    ],
)
async def test_a_bad_query_names_its_field(named, query, name):
    error = error_of(await named.get(f"/v1/models?{query}"), 400)
    assert error["type"] == "invalid_request_error"
    assert f"`{name}`" in error["message"]


async def test_errors_have_anthropics_form(api, engine, tokenizer):
    error = error_of(await api.client.get("/v1/models/claude", headers=HEADERS), 404)
    assert error["type"] == "not_found_error"
    assert "`model`" in error["message"]
    assert error_of(await api.client.post("/v1/models", headers=HEADERS), 405)["type"] == "invalid_request_error"
    api.error_of(await api.client.get("/v1/models/claude"), 404)
    app = create_app(engine, tokenizer, build({"api_key": ["sk-one"]}))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test", headers=HEADERS) as client:
        assert error_of(await client.get("/v1/models"), 401)["type"] == "authentication_error"
        assert (await client.get("/v1/models", headers={"x-api-key": "sk-one"})).status_code == 200


async def test_the_header_changes_no_other_route(api):
    api.error_of(await api.client.get("/v1/modelsx", headers=HEADERS), 404)
    body = {"messages": [{"role": "user", "content": "hi"}], "temperature": 5}
    api.error_of(await api.client.post("/v1/chat/completions", json=body, headers=HEADERS), 400)
