"""`unmask bench serve`: parses flags, prints a table or JSON. Only results go to standard output."""

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine import ConfigError
from server.arguments import Parser, positive, rate
from server.bench.serve import prompts
from server.bench.serve.client import PATHS, Client
from server.bench.serve.figures import summarise
from server.bench.serve.prompts import Lengths, LoadRequest
from server.bench.serve.run import LoadResult, closed_loop, open_loop
from server.bench.serve.show import table
from server.console import output, progress_bar
from server.remote import connect, first_model

INTERRUPTED = 130
FAILED = 1
DEFAULT_NUMBER = 64


def main(argv: Sequence[str]) -> int:
    """Exit code 1 if nothing was answered, 130 after Ctrl-C. Raises ConfigError for errors that the user can fix."""
    args = _parse(argv[1:])
    requests, extra_body = _requests(args), _extra_body(args)
    run, model = asyncio.run(_run(args, requests, extra_body))
    figures = summarise(run)
    if args.json:
        sys.stdout.write(json.dumps(figures.as_json(), indent=2) + "\n")
    else:
        pace = f"{args.request_rate:g} requests a second" if args.request_rate else f"{args.concurrency} at a time"
        console = output(120)
        console.print(table(figures, f"{model} at {args.base_url}: {len(requests)} requests, {pace}"), highlight=False)
    if run.interrupted:
        return INTERRUPTED
    return 0 if run.samples else FAILED


async def _run(
    args: argparse.Namespace, requests: Sequence[LoadRequest], extra_body: Mapping[str, object]
) -> tuple[LoadResult, str]:
    async with connect(args.base_url, args.api_key) as http:
        client = Client(http, args.model or await first_model(http), args.endpoint, extra_body)
        await client.check(requests[0])
        with progress_bar() as bar:
            task = bar.add_task(client.model, total=len(requests))

            def done() -> None:
                bar.update(task, advance=1)

            if args.request_rate:
                return await open_loop(client.send, requests, args.request_rate, args.seed, done), client.model
            return await closed_loop(client.send, requests, args.concurrency, done), client.model


def _requests(args: argparse.Namespace) -> list[LoadRequest]:
    prompt, output = Lengths.parse(args.prompt_length), Lengths.parse(args.output_length)
    if args.prompts:
        requests = prompts.from_file(args.prompts, args.num_prompts, output, args.seed)
    else:
        number = args.num_prompts or DEFAULT_NUMBER
        requests = prompts.random_requests(number, prompt, output, args.seed, vocab_size=args.vocab_size)
    if args.endpoint == "chat" and not all(isinstance(request.prompt, str) for request in requests):
        raise ConfigError("--endpoint chat takes prompts of text, not of token ids")
    return requests


def _extra_body(args: argparse.Namespace) -> dict[str, object]:
    try:
        extra = json.loads(args.extra_body)
    except ValueError as error:
        raise ConfigError(f"--extra-body is not valid JSON: {error}") from None
    if not isinstance(extra, dict):
        raise ConfigError('--extra-body must be a JSON object, as in {"diffusion": {"cache": "window"}}')
    return {"ignore_eos": True, **extra} if args.ignore_eos else extra


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="unmask bench serve",
        description="Puts load on a running OpenAI-compatible server and measures what its users would wait for. "
        "One request, not counted, goes ahead to see that the server answers.",
        allow_abbrev=False,
    )
    who = parser.add_argument_group("who is asked")
    who.add_argument("--base-url", default="http://127.0.0.1:8000", metavar="URL", help="[default: %(default)s]")
    who.add_argument("--model", help="[default: the first that the server lists]")
    who.add_argument("--api-key", default="none", metavar="KEY", help="[default: none]")
    who.add_argument("--endpoint", choices=PATHS, default="completions", help="[default: completions]")
    what = parser.add_argument_group("what is asked")
    what.add_argument("--num-prompts", type=positive, metavar="N",
                      help=f"requests [default: {DEFAULT_NUMBER}, or every line of --prompts once]")  # fmt: skip
    what.add_argument("--prompt-length", default="32", metavar="N|A-B",
                      help="words of a random prompt [default: 32]")  # fmt: skip
    what.add_argument("--output-length", default="64", metavar="N|A-B", help="max_tokens [default: 64]")
    what.add_argument(
        "--vocab-size", type=positive, metavar="N", help="prompts of random token ids below it, not words"
    )
    what.add_argument(
        "--prompts", type=Path, metavar="FILE.jsonl", help='{"prompt", optionally "max_tokens"} on a line'
    )
    what.add_argument("--ignore-eos", action="store_true", help="ask for answers of full length (vLLM, SGLang, unmask)")
    what.add_argument("--extra-body", default="{}", metavar="JSON",
                      help='fields of every request, as in {"diffusion": {"cache": "window"}}')  # fmt: skip
    what.add_argument("--seed", type=int, default=0, help="of prompts, lengths and arrivals [default: 0]")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--concurrency", type=positive, default=8, metavar="N", help="requests in flight [default: 8]")
    how.add_argument("--request-rate", type=rate, metavar="R", help="instead: R arrivals a second, at random times")
    parser.add_argument("--json", action="store_true", help="JSON on standard output instead of the table")
    return parser.parse_args(argv)
