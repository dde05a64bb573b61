"""`unmask run-batch IN.jsonl OUT.jsonl [MODEL]`: answers the requests of OpenAI's batch files without a server.

A line of IN is `{"custom_id", "method": "POST", "url": "/v1/chat/completions", "body": {...}}`; any route of the server
will do. A line of OUT is `{"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}`, in the
order in which answers come. A request that fails is a line too: with the server's error as the body, or, if it is no
request or has no answer, with `error`. A run that was ended goes on where it was: OUT is read first, and what it has
answers to is not asked again; what failed is.
"""

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import token_hex
from typing import Any, TextIO

import httpx
from fastapi import FastAPI

from engine import ConfigError, EngineLoop, check_settings, load
from server.arguments import Parser
from server.commands.sigterm import ended_by_sigterm
from server.console import progress_bar
from server.http.app import create_app
from server.settings.sources import load_settings
from server.text.tokenizer import Tokenizer

FAILED = 1
"""Exit code if any request has no answer."""
FOREVER = httpx.Timeout(None)
"""No network is between a request and its answer."""
MAX_PAUSE_SECONDS = 5
"""Pause before another try of a request that found the queue full, at most: nobody else's requests are in it."""


@dataclass(slots=True)
class Counts:
    """What became of the lines."""

    before: int = 0
    answered: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Line:
    """One line of IN."""

    number: int
    """From 1."""
    custom_id: str | None
    url: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    """Why it is no request."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code. Raises ConfigError or LoadError for errors that the user can fix."""
    args, rest = _parse(argv)
    settings = load_settings(rest, os.environ)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    check_settings(settings.engine, settings.diffusion, settings.server.temperature)
    total = _count(args.input)
    if args.output.exists() and args.output.samefile(args.input):
        raise ConfigError(f"{args.output} is the input; give another file for the answers")
    done = resume(args.output)
    settings = replace(settings, server=replace(settings.server, api_key=(), allowed_hosts=(), request_timeout=0.0))
    with ended_by_sigterm():
        engine = EngineLoop(load(settings.engine))
    with closing(Tokenizer.load(engine.info.folder)) as tokenizer, progress_bar() as bar:
        task = bar.add_task(args.input.name, total=total)
        app, most = create_app(engine, tokenizer, settings), engine.info.max_running_requests
        with _opened(args.output) as output:
            counts = asyncio.run(_run(app, args.input, output, done, most, lambda: bar.update(task, advance=1)))
    sys.stderr.write(f"{counts.answered} answered, {counts.failed} failed, {counts.before} had answers before\n")
    return FAILED if counts.failed else 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        prog="unmask run-batch",
        usage="unmask run-batch IN.jsonl OUT.jsonl [MODEL] [SETTINGS]",
        description="Answer the requests in a batch file of OpenAI's format without a server. A run that was ended "
        "goes on where it was, and asks again what failed.",
        epilog="MODEL and SETTINGS are those of `unmask serve` (see its --help), and stand behind the files.",
        allow_abbrev=False,
    )
    parser.add_argument("input", type=Path, metavar="IN.jsonl", help="a request on each line")
    parser.add_argument("output", type=Path, metavar="OUT.jsonl", help="an answer on each line; read if it exists")
    return parser.parse_known_args(argv)


def resume(path: Path) -> set[str]:
    """Ids of the requests that the file has answers to. Takes out of it what failed, and a last line that is cut.

    Raises ConfigError if it cannot be read or written, or is no file of answers.
    """
    if not path.exists():
        return set()
    done: set[str] = set()
    is_clean = True
    try:
        for line, custom_id in _answers(path):
            is_clean = is_clean and custom_id is not None and line.endswith("\n")
            if custom_id is not None:
                done.add(custom_id)
        if not is_clean:
            beside = path.with_name(path.name + ".part")
            with beside.open("w", encoding="utf-8") as kept:
                for line, custom_id in _answers(path):
                    if custom_id is not None:
                        kept.write(line if line.endswith("\n") else line + "\n")
            beside.replace(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read and written: {error}") from None
    return done


def _answers(path: Path) -> Iterator[tuple[str, str | None]]:
    """Each line of OUT, and what it answers: None if it failed or is cut. Raises ConfigError for any other line."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                answer = json.loads(line)
                custom_id, is_answer = answer["custom_id"], _is_answer(answer)
                is_known = isinstance(custom_id, str) or (custom_id is None and not is_answer)
            except (ValueError, KeyError, TypeError, RecursionError):
                custom_id, is_answer = None, False
                is_known = not line.endswith("\n")  # the last line, which is cut
            if not is_known:
                raise ConfigError(f"{path}, line {number} is no answer of a batch; give another file")
            yield line, custom_id if is_answer else None


def _count(path: Path) -> int:
    """Lines with something on them. Raises ConfigError for what cannot be read twice, as a pipe cannot."""
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is no regular file, and the input is read twice; write it to a file first")
        with path.open(encoding="utf-8-sig") as file:
            return sum(bool(line.strip()) for line in file)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8") from None


def _opened(path: Path) -> TextIO:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


async def _run(
    app: FastAPI, path: Path, output: TextIO, done: set[str], most: int, on_done: Callable[[], None]
) -> Counts:
    """Answers the lines that are not done, `2 * most` at a time."""
    counts, remaining = Counts(), _lines(path)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # its error of an exception is an answer

    async def work(http: httpx.AsyncClient) -> None:
        for line in remaining:
            if line.custom_id in done:
                counts.before += 1
            else:
                answer = _refusal(line, line.problem) if line.problem else await _answer(http, line)
                counts.answered += _is_answer(answer)
                counts.failed += not _is_answer(answer)
                output.write(json.dumps(answer) + "\n")
                output.flush()
            on_done()

    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://batch", timeout=FOREVER) as http,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(2 * most):
            group.create_task(work(http))
    return counts


def _lines(path: Path) -> Iterator[_Line]:
    seen: set[str] = set()
    with path.open(encoding="utf-8-sig") as file:
        for number, text in enumerate(file, start=1):
            if text.strip():
                line = _read(number, text)
                if line.custom_id in seen:
                    line = _Line(number, None, problem=f"the custom_id {line.custom_id!r:.200} is on a line before too")
                if line.custom_id is not None:
                    seen.add(line.custom_id)
                yield line


def _read(number: int, text: str) -> _Line:
    try:
        asked = json.loads(text)
    except (ValueError, RecursionError):
        return _Line(number, None, problem="the line is not valid JSON")
    match asked:
        case {"custom_id": str(id_), "method": "POST", "url": str(url), "body": dict(body)} if url.startswith("/"):
            problem = "`stream` is not for batches; leave it out" if body.get("stream") else ""
            return _Line(number, id_, url, body, problem)
        case {"custom_id": str(id_)}:
            needs = '`method` "POST", a `url` such as "/v1/chat/completions", and a `body` that is an object'
            return _Line(number, id_, problem=f"a line needs {needs}")
    return _Line(number, None, problem="a line needs a `custom_id` that is a string")


async def _answer(http: httpx.AsyncClient, line: _Line) -> dict[str, Any]:
    """The line of OUT. No line's failure ends the run, and with it the other lines."""
    try:
        response = await _response(http, line)
        request_id = response.headers.get("x-request-id", "")
        answer = {"status_code": response.status_code, "request_id": request_id, "body": response.json()}
    except httpx.InvalidURL as error:
        return _refusal(line, f"the `url` is not valid: {error}")
    except Exception as error:  # noqa: BLE001 - whatever it is, the other lines have answers
        return _refusal(line, f"the request failed: {type(error).__name__}: {error}", "request_failed")
    return _written(line.custom_id, answer, None)


async def _response(http: httpx.AsyncClient, line: _Line) -> httpx.Response:
    """Tries until there is a place: only other lines fill the queue, and a request that never fits is a 400."""
    content = json.dumps(line.body).encode()
    while True:
        response = await http.post(line.url, content=content, headers={"content-type": "application/json"})
        if response.status_code != httpx.codes.TOO_MANY_REQUESTS:
            return response
        await asyncio.sleep(min(float(response.headers["retry-after"]), MAX_PAUSE_SECONDS))


def _refusal(line: _Line, problem: str, code: str = "invalid_request") -> dict[str, Any]:
    error = {"code": code, "message": f"line {line.number}: {problem}", "line": line.number}
    return _written(line.custom_id, None, error)


def _is_answer(written: Mapping[str, Any]) -> bool:
    return written["response"] is not None and written["response"]["status_code"] == httpx.codes.OK


def _written(custom_id: str | None, response: dict[str, Any] | None, error: dict[str, Any] | None) -> dict[str, Any]:
    return {"id": f"batch_req_{token_hex(12)}", "custom_id": custom_id, "response": response, "error": error}
