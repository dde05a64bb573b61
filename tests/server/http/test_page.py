"""The page's files as a browser gets them; `tests/browser` uses them in one."""

import re
from importlib.resources import files

import httpx
import pytest

from server.http.app import create_app
from server.settings.tree import build

INDEX = "/"


@pytest.fixture
def served(engine, tokenizer):
    """`served(key=value)`: a client of an app with these settings."""

    def client(**values):
        app = create_app(engine, tokenizer, build(values))
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    return client


def paths():
    names = (file.name for file in files("server.page").iterdir() if not file.name.startswith("_"))
    return [f"/page/{name}" for name in sorted(names) if not name.endswith((".py", ".html"))]


async def test_all_that_the_page_names_is_there(api):
    index = await api.client.get(INDEX)
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    named = {f"/{name}" for name in re.findall(r'"(page/[^"]+)"', index.text)}
    assert named == {*paths()}
    for path in named:
        answer = await api.client.get(path)
        assert answer.status_code == 200
        for imported in re.findall(r'from "\./([^"]+)"', answer.text):
            assert f"/page/{imported}" in named


@pytest.mark.parametrize("path", [INDEX, "/page/page.js"])
async def test_headers_let_it_load_and_call_nothing_else(api, path):
    answer = await api.client.get(path)
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"


async def test_a_browser_that_has_it_gets_nothing(api):
    tag = (await api.client.get(INDEX)).headers["etag"]
    again = await api.client.get(INDEX, headers={"if-none-match": f"W/{tag}, {tag}"})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert (await api.client.get(INDEX, headers={"if-none-match": '"other"'})).status_code == 200
    assert (await api.client.head(INDEX)).status_code == 200
    api.error_of(await api.client.post(INDEX), 405)


async def test_without_it_there_is_nothing(served):
    client = served(page=False)
    for path in (INDEX, *paths()):
        assert (await client.get(path)).status_code == 404
    assert (await client.get("/openapi.json")).status_code == 200


async def test_it_needs_no_key_and_what_it_calls_does(served):
    client = served(api_key=["sk-secret"])
    for path in (INDEX, *paths()):
        assert (await client.get(path)).status_code == 200
    for path in ("/openapi.json", "/v1/models", "/page", "/page/page.py", "/page/nothing.js", "/page/../page/page.js"):
        assert (await client.get(path)).status_code == (200 if path.endswith("/../page/page.js") else 401), path
    closed = served(api_key=["sk-secret"], page=False)
    assert (await closed.get(INDEX)).status_code == 401, "an unknown path tells a stranger nothing"


async def test_the_description_tells_names_and_the_servers_defaults(api):
    schemas = (await api.client.get("/openapi.json")).json()["components"]["schemas"]
    properties = schemas["DiffusionRequest"]["properties"]
    assert properties["threshold"]["default"] == 0.8, "this server's setting"
    assert properties["lookahead"]["default"] == 32
    assert {"none", "dual", "block"} <= {*properties["cache"]["anyOf"][0]["enum"]}
    assert "threshold" in properties["unmask"]["anyOf"][0]["enum"]
