"""The log: its formats, one line for each request, and one every ten seconds while there is work.

Text or JSON, with the same facts. A prompt's text is logged only if the settings ask for it.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

from engine import EngineLoop, EngineStats
from server.observe.observer import RequestStats, TokenCounts
from server.settings.tree import ServerConfig
from server.text.tokenizer import Tokenizer

STATS_SECONDS = 10.0

_shared_facts: ContextVar[Mapping[str, object]] = ContextVar("shared_facts", default=MappingProxyType({}))

logger = logging.getLogger(__name__)


class TextFormatter(logging.Formatter):
    """One line, with the record's facts as `name=value` after the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's own name
        return " ".join([super().formatMessage(record), *(f"{k}={_shown(v)}" for k, v in _facts(record).items())])


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the record's facts as fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up(config: ServerConfig) -> None:
    """Sets level and format of the root logger, for the whole process. The log goes to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if config.log_format == "json" else TextFormatter())
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler])


@contextmanager
def facts_of_all_lines(**facts: object) -> Iterator[None]:
    """Adds these facts to every line that is logged by the body, and by tasks that the body starts."""
    token = _shared_facts.set({**_shared_facts.get(), **facts})
    try:
        yield
    finally:
        _shared_facts.reset(token)


class RequestLog:
    """An observer that writes a line when a request ends."""

    def __init__(self, model_name: str, prompts: Tokenizer | None) -> None:
        """`prompts`: the tokenizer that decodes prompts for the log; None keeps prompts out of it."""
        self._model_name = model_name
        self._prompts = prompts

    def on_block(self, stats: RequestStats, seconds: float) -> None:
        pass

    def on_end(self, stats: RequestStats) -> None:
        usage = stats.usage
        facts = {
            "id": stats.submission.request_id,
            "model": self._model_name,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "forwards": usage.forwards,
            "queue_seconds": _rounded(stats.queue_seconds),
            "first_block_seconds": _rounded(stats.first_block_seconds),
            "total_seconds": _rounded(stats.seconds),
            "finish_reason": str(stats.finish_reason),
        }
        if self._prompts:
            facts["prompt"] = self._prompts.decode(stats.submission.prompt_ids)
        logger.info("request", extra={"facts": facts})


@asynccontextmanager
async def stats_lines(engine: EngineLoop, tokens: TokenCounts) -> AsyncIterator[None]:
    """While the body runs, writes a line every `STATS_SECONDS`, unless the engine was idle."""

    async def every_so_often() -> None:
        before, counted = engine.stats, replace(tokens)
        while True:
            await asyncio.sleep(STATS_SECONDS)
            now = engine.stats
            if now.forwards > before.forwards or now.running or now.waiting:
                _log_stats(before, now, counted, tokens)
            before, counted = now, replace(tokens)

    task = asyncio.create_task(every_so_often())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _log_stats(before: EngineStats, now: EngineStats, counted: TokenCounts, tokens: TokenCounts) -> None:
    steps = now.decoding.denoising_steps - before.decoding.denoising_steps
    decoded = now.decoding.tokens_decoded - before.decoding.tokens_decoded
    facts = {
        "running": now.running,
        "waiting": now.waiting,
        "prompt_tokens_per_second": round((tokens.prompt - counted.prompt) / STATS_SECONDS, 1),
        "generation_tokens_per_second": round((tokens.generation - counted.generation) / STATS_SECONDS, 1),
        "forwards_per_second": round((now.forwards - before.forwards) / STATS_SECONDS, 1),
        "tokens_per_forward": round(decoded / steps, 2) if steps else 0.0,
        "kv_pages_used": now.kv_pages_used,
        "kv_pages_total": now.kv_pages_total,
    }
    logger.info("busy", extra={"facts": facts})


def _facts(record: logging.LogRecord) -> Mapping[str, object]:
    """The record's own facts first, then its request's. The context is still the request's: logging formats at once."""
    return {**getattr(record, "facts", {}), **_shared_facts.get()}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def _shown(value: object) -> str:
    """The value for a line of text. Quoted if needed, so that a prompt adds no line breaks or control characters."""
    text = "-" if value is None else str(value)
    return text if text.isprintable() and " " not in text and '"' not in text else json.dumps(text)
