"""`unmask eval`: asks, and prints a table. Results go to standard output, progress and logs to standard error."""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from engine import (
    BUNDLED,
    CACHES,
    UNMASKS,
    ConfigError,
    DiffusionParams,
    ModelSpec,
    Quantization,
    UnmaskError,
    find_model,
    resolved,
)
from server.eval import questions, show
from server.eval.answerers import local, remote
from server.eval.answerers.answers import Answerer, Options
from server.eval.calibration import Calibration, calibrate
from server.eval.decisions import DecisionRow, decided
from server.eval.flags import parse
from server.eval.policy import (
    AS_COMPUTED,
    QUANTIZATIONS,
    WINDOW,
    KVFormat,
    PolicyPair,
    exact,
    product,
)
from server.eval.run import evaluate, num_answers
from server.eval.score import Row
from server.settings.tree import DEMO, BadSetting, build

EXACT, UNCHANGED = "the exact decode", "with weights, keys and values as they are computed"
"""What answers are compared to."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code. Raises ConfigError or LoadError for errors that the user can fix."""
    args = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if args.export:
        number = questions.export(args.export, questions.choose_tasks(args.tasks), args.seed, args.limit)
        sys.stderr.write(f"{number} problems written to {args.export}\n")
        return 0
    for flag in ("calibration", "decisions"):
        if getattr(args, flag) and (args.cache or args.unmask or args.kv_dtype or args.quantization or args.plot):
            raise ConfigError(
                f"--{flag} asks by one forward, without a policy: leave out --cache, --unmask, --kv-dtype, "
                "--quantization and --plot"
            )
    if args.decisions and args.plain:
        raise ConfigError("--decisions are asked by the chat template, which --plain leaves out")
    asked = _questions(args)
    if args.calibration or args.decisions:
        _check_mask(args, "--calibration" if args.calibration else "--decisions")
    policies = _policies(args)
    references = {} if policies == [PolicyPair()] or args.no_agreement else _references(args, policies)
    draw = show.pyplot() if args.plot else None
    try:
        if args.calibration:
            found = asyncio.run(_calibrated(args, asked))
            as_json: dict[str, object] = {"calibration": asdict(found)}
            _print(args, as_json, show.calibration_markdown(found), show.calibration_table(found))
            return 0
        if args.decisions:
            told = asyncio.run(_decided(args, asked))
            as_json = {"decisions": [asdict(one) for one in told]}
            _print(args, as_json, show.decisions_markdown(told), show.decisions_table(told))
            return 0
        rows = asyncio.run(_run(args, asked, policies, references))
    except ConfigError:
        raise
    except UnmaskError as error:  # such as the engine's error for a parameter, which the user can fix
        raise ConfigError(str(error)) from None
    shown = show.table(rows, UNCHANGED if args.kv_dtype or args.quantization else EXACT)
    _print(args, {"rows": [row.as_json() for row in rows]}, show.markdown(rows), shown)
    if draw:
        draw(rows, args.plot)
    return 0


def _print(args: argparse.Namespace, as_json: object, markdown: str, table: Table) -> None:
    if args.json:
        sys.stdout.write(json.dumps(as_json) + "\n")
    elif args.markdown:
        sys.stdout.write(markdown)
    else:
        Console().print(table)


async def _calibrated(args: argparse.Namespace, asked: Sequence[questions.Question]) -> Calibration:
    async with _answerer(args) as model_or_server:
        return await calibrate(model_or_server, asked, args.concurrency)


async def _decided(args: argparse.Namespace, asked: Sequence[questions.Question]) -> list[DecisionRow]:
    async with _answerer(args) as model_or_server:
        return await decided(model_or_server, asked)


def _answerer(
    args: argparse.Namespace, kv_format: KVFormat = AS_COMPUTED, quantization: Quantization = "none"
) -> AbstractAsyncContextManager[Answerer]:
    options = Options(max_tokens=args.max_tokens, plain=args.plain)
    if args.base_url:
        return remote.connected(args.base_url, args.model, options, args.api_key)
    return local.running(_local_model(args), options, args.concurrency, kv_format, quantization)


async def _run(
    args: argparse.Namespace,
    asked: Sequence[questions.Question],
    policies: Sequence[PolicyPair],
    references: Mapping[PolicyPair, PolicyPair],
) -> list[Row]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_terminal = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_terminal) as bar:
        task = bar.add_task("loading", total=num_answers(asked, policies, references))

        def progress(description: str, answers: int) -> None:
            bar.update(task, advance=answers, description=description or None)

        return await evaluate(partial(_answerer, args), asked, policies, references, args.concurrency, progress)


def _references(args: argparse.Namespace, policies: Sequence[PolicyPair]) -> dict[PolicyPair, PolicyPair]:
    """What each policy is compared to: the exact decode, or itself with weights, keys and values as they are computed.

    A model without a mask has no exact decode, which takes one mask a step: policies for such models have no reference.
    """
    if args.kv_dtype or args.quantization:
        return {policy: replace(policy, kv_format=AS_COMPUTED, quantization="none") for policy in policies}
    reference = exact(policies[0].cache or "", policies[0].block_length)
    return {policy: reference for policy in policies if policy.unmask is None or not UNMASKS[policy.unmask].renews}


def _questions(args: argparse.Namespace) -> list[questions.Question]:
    if args.data:
        return questions.from_file(args.data, args.limit, args.few_shot)
    tasks = questions.choose_tasks(args.tasks, plain=args.plain)
    return questions.from_tasks(tasks, args.seed, args.limit, args.few_shot)


def _policies(args: argparse.Namespace) -> list[PolicyPair]:
    """The product of the lists; or the server's own policy if there is a `base_url` and no policy was named.

    For a local model, with its own cache and block where none were named. Raises ConfigError for invalid values, and
    LoadError if there is no such model.
    """
    defaults = DiffusionParams()
    if args.base_url and args.kv_dtype:
        raise ConfigError("--kv-dtype is for a local model: a server stores keys and values in its own way")
    if args.base_url and args.quantization:
        raise ConfigError("--quantization is for a local model: a server stores weights in its own way")
    if args.base_url and not (args.cache or args.unmask):
        return [PolicyPair()]
    values = {name: getattr(args, name) for name in ("tokens_per_step", "threshold", "factor")}
    windows = {name: getattr(args, name) for name in WINDOW if getattr(args, name) is not None}
    caches = args.cache or [defaults.cache]
    if windows and "window" not in caches:
        raise ConfigError(f"--{min(windows).replace('_', '-')} is for --cache window")
    unmasks = args.unmask or [defaults.unmask]
    kv_formats = [KVFormat.named(name) for name in args.kv_dtype or []] or [AS_COMPUTED]
    asked = caches, unmasks, values, args.block_length, windows, args.lookahead, args.guidance, kv_formats
    policies = product(*asked, _evictions(args), _quantizations(args))
    for policy in policies:
        fields = policy.diffusion(args.max_tokens)
        try:
            build({f"diffusion.{name}": value for name, value in fields.items()})
        except BadSetting as error:
            value = fields[error.key.removeprefix("diffusion.")]
            raise ConfigError(f"{error.key} {error}, not {value}") from None
    if args.base_url:
        return policies
    spec = find_model(_local_model(args)).spec
    return [_resolved(policy, spec) for policy in policies]


def _quantizations(args: argparse.Namespace) -> list[Quantization]:
    """Raises ConfigError for an unknown name."""
    known = {str(name): name for name in QUANTIZATIONS}
    for name in args.quantization or []:
        if name not in known:
            raise ConfigError(f"{name!r} is no format of weights; choose among {', '.join(QUANTIZATIONS)}")
    return [known[name] for name in args.quantization or ["none"]]


def _evictions(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Each as fields of `PolicyPair`. Raises ConfigError for a score or a buffer without a budget."""
    if args.kv_budget is None:
        if args.kv_score or args.kv_buffer:
            raise ConfigError("--kv-score and --kv-buffer say how --kv-budget evicts: name it, too")
        return [{}]
    fields = {"kv_budget": args.kv_budget, "kv_buffer": args.kv_buffer}
    return [{**fields, "kv_score": score} for score in args.kv_score or [None]]


def _resolved(policy: PolicyPair, spec: ModelSpec) -> PolicyPair:
    """With the model's own cache and block where none were named. Raises ConfigError for policies that do not fit."""
    params = resolved(DiffusionParams(cache=policy.cache or "auto", block_length=policy.block_length), spec)
    if not CACHES[params.cache].fits(spec):
        fitting = ", ".join(name for name, cache in CACHES.items() if cache.fits(spec))
        raise ConfigError(f"--cache {params.cache} does not fit the model ({spec.family}); these do: {fitting}")
    unmask = policy.unmask or params.unmask
    if not UNMASKS[unmask].fits(spec):
        fitting = ", ".join(name for name, other in UNMASKS.items() if other.fits(spec))
        raise ConfigError(f"--unmask {unmask} does not fit the model ({spec.family}); these do: {fitting}")
    return replace(policy, cache=params.cache, block_length=params.block_length)


def _check_mask(args: argparse.Namespace, flag: str) -> None:
    """Raises ConfigError if a local model has no mask to read probabilities at."""
    if not args.base_url and (spec := find_model(_local_model(args)).spec).mask_id is None:
        raise ConfigError(f"{flag} reads the probabilities at a mask, and the model has none ({spec.family})")


def _local_model(args: argparse.Namespace) -> str:
    model: str = args.model or DEMO
    return BUNDLED.get(model, model)
