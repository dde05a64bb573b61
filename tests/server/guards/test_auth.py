"""Keys: who gets in, what stays open, what is never shown; and which web pages may ask."""

import logging

import httpx
import pytest

from engine import ConfigError
from server.commands import serve
from server.guards import auth
from server.guards.auth import ApiKeys, route_path
from server.http.app import create_app
from server.settings.sources import load_settings
from server.settings.tree import build

KEYS = ["sk-first", "sk-second"]


@pytest.fixture
def guarded(engine, tokenizer):
    """`guarded(key=value)`: a client of an app that knows two keys, with further settings."""

    def build_client(**values):
        app = create_app(engine, tokenizer, build({"api_key": KEYS, "docs": True, **values}))
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    return build_client


def bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", KEYS)
async def test_each_key_lets_in(guarded, key):
    for headers in (bearer(key), {"authorization": f"bearer  {key} "}):
        response = await guarded().post("/v1/completions", json={"prompt": "ab"}, headers=headers)
        assert response.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("sk-third"),
        bearer("sk-firs"),
        bearer("sk-first2"),
        bearer(""),
        bearer("sk-first,sk-second"),
        {"authorization": "sk-first"},
        {"authorization": "Basic sk-first"},
        {"authorization": "Bearer \u00e9".encode("latin-1")},
        {"x-api-key": "sk-third"},
        {"x-api-key": ""},
    ],
)
async def test_anything_else_is_a_401(api, engine, guarded, headers):
    response = await guarded().post("/v1/completions", json={"prompt": "ab"}, headers=headers)
    error = api.error_of(response, 401)
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert "sk-" not in response.text
    assert not engine.streams


async def test_every_route_is_guarded_but_the_probes_and_the_page(app, guarded):
    client = guarded()
    paths = {*app.openapi()["paths"], "/docs", "/openapi.json", "/", "/nothing", "/health/"}
    statuses = {path: (await client.get(path)).status_code for path in paths}
    open_paths = {path for path, status in statuses.items() if status != 401}
    assert open_paths == {"/", "/health", "/health/", "/ready"} | ({"/ping"} & paths)


async def test_metrics_are_guarded_unless_opened_on_purpose(guarded):
    for path in ("/metrics", "/metrics/"):
        assert (await guarded().get(path)).status_code == 401
        assert (await guarded().get(path, headers=bearer(KEYS[0]))).status_code == 200
        assert (await guarded(metrics_need_key=False).get(path)).status_code == 200


@pytest.mark.parametrize("host", ["test", "health", "test/health?", "test/health#"])
async def test_the_host_header_opens_nothing(guarded, host):
    assert (await guarded().get("/v1/models", headers={"host": host})).status_code == 401


@pytest.mark.parametrize(
    ("path", "root", "seen"),
    [
        ("/health", "", "/health"),
        ("/api/health", "/api", "/health"),
        ("/api/health", "/api/", "/health"),
        ("/api", "/api", ""),
        ("/apihealth", "/api", "/apihealth"),
        ("/health", "/api", "/health"),
    ],
)
def test_the_path_is_the_one_that_routes_see(path, root, seen):
    assert route_path({"path": path, "root_path": root}) == seen


def test_every_key_is_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr(auth.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    keys = ApiKeys(app=None, keys=["a", "b", "c"])
    assert keys._known("a")
    assert len(compared) == 3
    assert all(len(a) == len(b) == 32 for a, b in compared)


async def test_without_keys_everybody_is_served(api):
    assert (await api.complete()).status_code == 200


@pytest.mark.parametrize(
    ("argv", "environ", "lines", "keys"),
    [
        (["--api-key", "a", "--api-key", "b"], {}, None, ["a", "b"]),
        (["--api-key", "a,b"], {}, None, ["a", "b"]),
        ([], {"UNMASK_API_KEY": "a,b"}, None, ["a", "b"]),
        ([], {}, "a\n\n  b  \r\n", ["a", "b"]),
        (["--api-key", "c"], {}, "a\n", ["c", "a"]),
    ],
)
def test_where_keys_come_from(tmp_path, argv, environ, lines, keys):
    if lines is not None:
        (tmp_path / "keys").write_text(lines)
        argv = [*argv, "--api-key-file", str(tmp_path / "keys")]
    config = load_settings(argv, environ).server
    assert [key.get_secret_value() for key in config.api_key] == keys


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--api-key-file", "/nowhere"], "--api-key-file cannot be read"),
        (["--api-key-file", "{empty}"], "--api-key-file holds no key"),
        (["--api-key-file", "{bad}"], "--api-key-file must hold keys of visible ASCII"),
        (["--api-key", ""], "--api-key holds an empty entry"),
        (["--api-key", ","], "--api-key holds an empty entry"),
        (["--api-key", "", "--api-key-file", "{good}"], "--api-key holds an empty entry"),
        (["--api-key", "'topsecret'"], "--api-key holds quotes"),
        (["--api-key", "topsecret with blanks"], "--api-key must hold keys of visible ASCII"),
    ],
)
def test_a_server_that_was_meant_to_be_guarded_does_not_start_open(tmp_path, argv, text):
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "bad").write_text("topsecret \u00e9\n")
    (tmp_path / "good").write_text("topsecret\n")
    names = {name: str(tmp_path / name) for name in ("empty", "bad", "good")}
    with pytest.raises(ConfigError) as error:
        load_settings([argument.format(**names) for argument in argv], {})
    assert text in str(error.value)
    assert "topsecret" not in str(error.value)


def test_keys_are_never_shown():
    settings = load_settings(["--api-key", "topsecret"], {})
    assert "topsecret" not in f"{settings} {settings!r} {settings.server.api_key}"
    assert "api_key" in repr(settings)


@pytest.mark.parametrize(
    ("host", "keys", "exposed"),
    [
        ("127.0.0.1", [], False),
        ("::1", [], False),
        ("localhost", [], False),
        ("0.0.0.0", [], True),
        ("::", [], True),
        ("192.0.2.1", [], True),
        ("server.example.org", [], True),
        ("0.0.0.0", ["a"], False),
    ],
)
def test_who_listens_to_the_world_without_a_key_is_warned(host, keys, exposed):
    assert serve.is_exposed(build({"host": host, "api_key": keys}).server) is exposed


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        ({}, {"localhost", "127.0.0.1", "[::1]"}),
        ({"host": "127.0.0.2"}, {"localhost", "127.0.0.1", "[::1]", "127.0.0.2"}),
        ({"host": "::1"}, {"localhost", "127.0.0.1", "[::1]"}),
        ({"host": "0.0.0.0"}, set()),
        ({"api_key": ["a"]}, set()),
        ({"allowed_hosts": ["page.example.org"]}, {"page.example.org"}),
        ({"host": "0.0.0.0", "allowed_hosts": ["page.example.org"]}, {"page.example.org"}),
    ],
)
def test_without_a_key_the_loopback_answers_its_own_names_alone(given, hosts):
    assert set(serve.effective_config(build(given).server).allowed_hosts) == hosts


def test_fewer_connections_than_asked_for_are_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(serve, "affordable_connections", lambda wanted: wanted - 1)
    assert serve.effective_config(build({}).server).max_connections == 999
    assert "max_connections is 999, not 1000" in caplog.text


@pytest.fixture
def local(engine, tokenizer):
    """`await local(host, path)`: the answer of an app that knows the loopback's hosts to GET for this one."""
    app = create_app(engine, tokenizer, build({"allowed_hosts": auth.LOOPBACK}))

    async def get(host, path="/v1/models"):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get(path, headers={"host": host})

    return get


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1:8000", "[::1]", "[::1]:8000"])
async def test_a_known_host_is_answered(local, host):
    assert (await local(host)).status_code == 200


@pytest.mark.parametrize(
    "host", ["page.example.org", "localhost.example.org:8000", "127.0.0.1.nip.io", "[::2]", "::1", "localhost:x", ":80"]
)
async def test_a_foreign_host_is_a_403(api, local, host):
    error = api.error_of(await local(host), 403)
    assert error["code"] == "unknown_host"
    assert "allowed_hosts" in error["message"]


@pytest.mark.parametrize("path", sorted(auth.PROBES))
async def test_probes_may_ask_by_any_address(local, path):
    """A kubelet asks a pod's, and a container's own health check whatever the server listens at."""
    assert (await local("10.244.1.7:8000", path)).status_code == 200


async def test_every_host_can_be_allowed(engine, tokenizer):
    app = create_app(engine, tokenizer, build({"allowed_hosts": ["*"]}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://page.example.org") as client:
        assert (await client.get("/health")).status_code == 200


ORIGIN = "https://page.example.org"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization",
}


async def test_no_page_may_ask_unless_allowed(guarded):
    for headers in (PREFLIGHT, {"origin": ORIGIN}):
        response = await guarded().options("/v1/completions", headers=headers)
        assert response.status_code == 401
        assert "access-control-allow-origin" not in response.headers


async def test_an_allowed_page_may_ask(guarded, engine):
    client = guarded(allowed_origins=[ORIGIN])
    preflight = await client.options("/v1/completions", headers=PREFLIGHT)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert preflight.headers["access-control-allow-headers"] == "authorization"
    assert preflight.headers["x-request-id"]
    headers = {"origin": ORIGIN, **bearer(KEYS[0])}
    answers = [
        await client.post("/v1/completions", json={"prompt": "ab"}, headers=headers),
        await client.post("/v1/completions", json={"prompt": "ab"}, headers={"origin": ORIGIN}),
        await client.post("/v1/completions", json={}, headers=headers),
    ]
    assert [answer.status_code for answer in answers] == [200, 401, 400]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers


async def test_another_page_may_not(guarded):
    client = guarded(allowed_origins=[ORIGIN])
    other = {**PREFLIGHT, "origin": "https://evil.example.org"}
    preflight = await client.options("/v1/completions", headers=other)
    assert preflight.status_code == 400
    assert preflight.headers["x-request-id"]
    answer = await client.get("/v1/models", headers={"origin": other["origin"], **bearer(KEYS[0])})
    for response in (preflight, answer):
        assert "access-control-allow-origin" not in response.headers


async def test_no_script_comes_from_elsewhere_unless_asked(api, guarded):
    assert (await api.client.get("/docs")).status_code == 404
    assert (await api.client.get("/redoc")).status_code == 404
    assert (await api.client.get("/openapi.json")).status_code == 200
    assert (await guarded().get("/docs", headers=bearer(KEYS[0]))).status_code == 200


async def test_the_log_shows_neither_keys_nor_prompts(guarded, caplog):
    caplog.set_level(logging.DEBUG)
    client = guarded()
    for key in (*KEYS, "sk-third"):
        await client.post("/v1/completions", json={"prompt": "private words"}, headers=bearer(key))
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("server", "engine"))]
    assert len(ours) == 5  # three requests, two of them answered
    assert not any("sk-" in line or "private" in line for line in ours)


async def test_a_request_id_is_there_whatever_happens(guarded):
    client = guarded(max_body_bytes=10)
    long = await client.post("/v1/completions", content=b" " * 20, headers={**bearer(KEYS[0]), "x-request-id": "me"})
    assert (long.status_code, long.headers["x-request-id"]) == (413, "me")
