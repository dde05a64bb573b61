"""One path in many forms: trailing slashes, HEAD, a proxy's absolute targets; and bodies of two lengths."""

import asyncio

import httpx
import pytest

GETS = ("/v1/models", "/v1/models/fake", "/health", "/ready", "/ping", "/version", "/load")


@pytest.mark.parametrize("path", GETS)
@pytest.mark.parametrize("slashes", ["/", "//"])
async def test_a_trailing_slash_makes_no_difference(api, path, slashes):
    plain, slashed = await api.client.get(path), await api.client.get(path + slashes)
    assert (slashed.status_code, slashed.content) == (plain.status_code, plain.content) == (200, plain.content)


async def test_nor_for_what_is_posted(api, engine):
    for path in ("/v1/completions/", "/tokenize/"):
        assert (await api.client.post(path, json={"prompt": "ab"})).status_code == 200
    assert len(engine.streams) == 1


async def test_what_is_nowhere_is_nowhere_with_a_slash_too(api):
    for path in ("/nothing/", "/nothing//", "/v1/", "/page/"):
        response = await api.client.get(path)
        assert "location" not in response.headers
        api.error_of(response, 404)


async def test_head_is_get_without_its_body(engine, tokenizer, listening):
    async with (
        listening(engine, tokenizer, served_model_name=["fake"]) as (url, _),
        httpx.AsyncClient(base_url=url) as client,
    ):
        for path in (*GETS, "/metrics", "/health/", "/v1/models/nobody", "/nothing"):
            get, head = await client.get(path), await client.head(path)
            assert head.status_code == get.status_code
            assert head.headers["content-type"] == get.headers["content-type"]
            assert path == "/metrics" or head.headers["content-length"] == get.headers["content-length"]
            assert head.content == b""
        assert (await client.get("/health")).json() == {"status": "ok"}, "the connection is out of step"


async def test_head_of_what_is_only_posted_is_a_405(api):
    response = await api.client.head("/v1/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


async def test_head_is_logged_and_counted_as_it_came(api, caplog):
    caplog.set_level("INFO")
    await api.client.head("/v1/models/")
    assert "HEAD '/v1/models' 200" in caplog.text
    figures = (await api.client.get("/metrics")).text
    assert 'unmask_http_responses_total{code="2xx",handler="/v1/models",model_name="fake"} 1.0' in figures


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://localhost/health", b"200"),
        (b"HTTP://localhost:80/v1/models/?a=b://c", b"200"),
        (b"https://[::1]/health", b"200"),
        (b"http://localhost", b"200"),
        (b"http://page.example.org/v1/models", b"403"),
        (b"ftp://localhost/health", b"404"),
        (b"*", b"404"),
    ],
)
async def test_an_absolute_target_is_its_path_at_that_host(connect, engine, tokenizer, listening, target, status):
    async with listening(engine, tokenizer, allowed_hosts=["localhost", "[::1]"]) as (url, _):
        reader, writer = await connect(url)
        writer.write(b"GET " + target + b" HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), 5)).split()[1] == status


@pytest.mark.parametrize("target", [b"http://localhost/health", b"/health/"])
async def test_a_probe_beyond_the_limit_is_known_in_every_form(connect, engine, tokenizer, listening, target):
    async with listening(engine, tokenizer, max_connections=1) as (url, _):
        await connect(url)
        reader, writer = await connect(url)
        writer.write(b"GET " + target + b" HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), 5)).split()[1] == b"200"


@pytest.mark.parametrize("order", [1, -1])
async def test_a_body_with_two_lengths_is_refused_and_the_rest_not_read(
    connect, answer, engine, tokenizer, listening, order
):
    lengths = [b"content-length: 3\r\n", b"transfer-encoding: chunked\r\n"][::order]
    async with listening(engine, tokenizer) as (url, _):
        reader, writer = await connect(url)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n" + b"".join(lengths) + b"\r\n")
        writer.write(b"0\r\n\r\nGET /version HTTP/1.1\r\nhost: localhost\r\n\r\n")
        status, headers, body = await answer(reader)
        assert status == "HTTP/1.1 400 Bad Request"
        assert headers["connection"] == "close"
        assert "Transfer-Encoding" in body["error"]["message"]
