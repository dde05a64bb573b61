"""A client for any OpenAI-compatible server: connects, lists models, calls; its errors are messages for the user."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx

from engine import ConfigError

_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {*map(ord, "\n\t")}, "\N{REPLACEMENT CHARACTER}")
TIMEOUT = httpx.Timeout(600.0, connect=10.0)
"""In seconds. Long, because an answer may wait in a queue behind many others."""
MAX_TRIES = 8
"""Tries of one call while the server answers 429 or 503, because it is full or starting."""


class BrokenStream(Exception):
    """The stream contained an error, or was not a stream of events."""


def connect(base_url: str, api_key: str) -> httpx.AsyncClient:
    """A client without a bound on connections. `base_url` may end in /v1 or not. Raises ConfigError."""
    base_url = base_url.rstrip("/").removesuffix("/v1") + "/v1/"
    headers = {"Authorization": f"Bearer {api_key}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    try:
        client = httpx.AsyncClient(base_url=base_url, headers=headers, timeout=TIMEOUT, limits=limits)
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigError(f"{base_url} is no URL: {error}") from None
    if client.base_url.scheme not in ("http", "https") or not client.base_url.host:
        raise ConfigError(f"{base_url} is no URL: it should look like http://127.0.0.1:8000")
    return client


def plain(text: str) -> str:
    """A server's text as a terminal may be given it: without the controls (C0, C1) that would move or rename it."""
    return text.translate(_CONTROLS)


def complaint(http: httpx.AsyncClient, path: str, error: Exception) -> str:
    """The message for the user about a request that got no answer."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return (
            f"no server answers at {http.base_url} ({error or type(error).__name__}): start one with `unmask serve`, "
            "or give another's address with --base-url"
        )
    return f"{http.base_url}{path}: {error or type(error).__name__}"


async def first_model(http: httpx.AsyncClient) -> str:
    """The first model that the server lists. Raises ConfigError."""
    listed = await call(http, "GET", "models", None)
    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise ConfigError(f"{http.base_url}models lists no model; name one with --model") from None


async def call(http: httpx.AsyncClient, method: str, path: str, body: object) -> Any:
    """The parsed JSON answer. Raises ConfigError if the call fails, with the server's own message."""
    response = None
    for attempt in range(MAX_TRIES):
        try:
            response = await http.request(method, path, json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ConfigError(complaint(http, path, error)) from None
        if response.status_code not in (429, 503):
            break
        await asyncio.sleep(0.1 * 2**attempt)
    assert response is not None
    if response.status_code == httpx.codes.NOT_FOUND and path.startswith("chat"):
        raise ConfigError(
            f"{http.base_url}{path} answered 404: {plain(response.text):.200} (--plain asks without chat)"
        )
    if not response.is_success:
        raise ConfigError(f"{http.base_url}{path} answered {response.status_code}: {plain(response.text):.300}")
    try:
        return response.json()
    except ValueError:
        raise ConfigError(f"{http.base_url}{path} did not answer in JSON: {plain(response.text):.200}") from None


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each event of a stream, whatever its name is, up to `[DONE]`. Raises BrokenStream."""
    async for line in response.aiter_lines():
        field, _, value = line.partition(":")
        if field != "data":
            continue
        if value.strip() == "[DONE]":
            return
        try:
            event = json.loads(value)
        except ValueError:
            raise BrokenStream("the stream holds something that is no JSON") from None
        if not isinstance(event, dict):
            raise BrokenStream("the stream holds something that is no JSON object")
        if event.get("error"):
            raise BrokenStream(f"an error in the stream{error_code(value)}")
        yield event
    raise BrokenStream("the stream ended without [DONE]")


def error_code(body: str) -> str:
    """The `code` or else the `type` of OpenAI's error object, after a space; empty if there is none."""
    try:
        error = json.loads(body)["error"]
        return plain(f" {error.get('code') or error['type']}")
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""


def sum_reported(figures: Sequence[int | None]) -> int | None:
    """The sum of what a server reports of each answer; None if it leaves out any."""
    known = [figure for figure in figures if figure is not None]
    return sum(known) if len(known) == len(figures) else None
