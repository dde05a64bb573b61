"""`unmask eval`: parses flags, prints a table. Results go to standard output, progress and logs to standard error."""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from engine import (
    BUNDLED,
    CACHES,
    DEMO_TASKS,
    UNMASKS,
    ConfigError,
    DiffusionParams,
    ModelSpec,
    Quantization,
    UnmaskError,
    find_model,
    resolved,
)
from server.arguments import Parser, count, listed, positive, rate
from server.eval import local, questions, remote, show
from server.eval.answers import Answerer, Options
from server.eval.calibration import Calibration, calibrate
from server.eval.decisions import DecisionRow, decided
from server.eval.policy import (
    AS_COMPUTED,
    CANVAS,
    FREE,
    GUIDANCES,
    KV_DTYPES,
    QUANTIZATIONS,
    WINDOW,
    KVFormat,
    Lookahead,
    PolicyPair,
    exact,
    product,
)
from server.eval.run import evaluate, num_answers
from server.eval.score import Row
from server.settings.tree import DEMO, BadSetting, build

EXACT, UNCHANGED = "the exact decode", "with weights, keys and values as they are computed"
"""What answers are compared to."""

_EPILOG = """\
Each list makes rows: every cache with every unmask policy at each value of that policy's parameter. So
  unmask eval --cache none,dual --unmask fixed,threshold --tokens-per-step 1,2 --threshold 0.9
has six rows for each task. With --base-url, policies that are not named are left to the server, and without --cache and
--unmask no `diffusion` object is sent: any OpenAI-compatible server can be measured so."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code. Raises ConfigError or LoadError for errors that the user can fix."""
    args = _parse(argv)
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


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    defaults = DiffusionParams()
    parser = Parser(
        prog="unmask eval",
        description="Measure what decoding policies cost in quality, with exactly checked answers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    who = parser.add_argument_group("who is asked")
    who.add_argument("--model", help="folder or hub id; with --base-url the name to ask for [default: demo, or the "
                     "server's first]")  # fmt: skip
    who.add_argument("--base-url", metavar="URL", help="an OpenAI-compatible server, asked instead of a local model")
    who.add_argument("--api-key", default="none", help="for that server [default: none]")
    what = parser.add_argument_group("what is asked")
    what.add_argument("--tasks", type=_names, default=["all"], help="of "
                      f"{','.join((*questions.GROUPS, *DEMO_TASKS))} [default: all]")  # fmt: skip
    what.add_argument("--data", type=Path, metavar="FILE.jsonl", help='instead of tasks: {"prompt" or "messages", '
                      '"answer"} on each line, compared exactly but for white space around it')  # fmt: skip
    what.add_argument("--limit", type=positive, default=100, help="problems per task, or of the file [default: 100]")
    what.add_argument("--seed", type=int, default=20261122, help="of the tasks' problems [default: 20261122]")
    what.add_argument("--few-shot", type=count, default=0, metavar="N", help="solved examples first [default: 0]")
    what.add_argument("--plain", action="store_true", help="`Question: … Answer:` instead of the chat template")
    what.add_argument(
        "--max-tokens",
        type=positive,
        default=64,
        help=f"longest answer; long stories have {questions.LONG_STORY} [default: 64]",
    )
    one_forward = what.add_mutually_exclusive_group()
    one_forward.add_argument("--calibration", action="store_true", help="of questions answered by Yes or No: the "
                             "probability of Yes in one forward against the truth")  # fmt: skip
    one_forward.add_argument("--decisions", action="store_true", help="of questions answered by Yes or No, a letter, "
                             "a number from 1 on, or one of `choices`: accuracy and calibration by "
                             "/v1/decisions")  # fmt: skip
    what.add_argument("--export", type=Path, metavar="FILE.jsonl", help="write the tasks' problems there and end")
    how = parser.add_argument_group("how it is decoded (comma-separated lists)")
    how.add_argument("--cache", type=_names, help=f"of {','.join(CACHES)} [default: {defaults.cache}]")
    how.add_argument("--unmask", type=_names, help=f"of {','.join(UNMASKS)} [default: {defaults.unmask}]")
    how.add_argument(
        "--tokens-per-step", type=listed(rate), default=[1.0], help="for fixed, random, dream [default: 1]"
    )
    how.add_argument(
        "--threshold", type=listed(rate), default=[defaults.threshold], help="for threshold [default: 0.9]"
    )
    how.add_argument("--factor", type=listed(rate), default=[defaults.factor], help="for factor [default: 1]")
    for name in WINDOW:
        flag = "--" + name.replace("_", "-")
        how.add_argument(flag, type=listed(count), metavar="N", help=f"for window [default: {getattr(defaults, name)}]")
    how.add_argument(
        "--lookahead", type=_lookaheads, default=[None], metavar="N", help=f"positions behind the block; {CANVAS}: all "
        f"[default: {CANVAS if defaults.lookahead is None else defaults.lookahead}]",
    )  # fmt: skip
    how.add_argument(
        "--guidance", type=_guidances, default=[None], help="of free,posterior,model: how an answer of a form or of "
        "tools is held to its schema [default: free]",
    )  # fmt: skip
    how.add_argument(
        "--block-length", type=positive, default=defaults.block_length, help="[default: the model's own, or 32]"
    )
    how.add_argument("--kv-dtype", type=_names, help=f"of {','.join(KV_DTYPES)}: how a local model stores keys and "
                     "values, int8/0.1: with kv_prune 0.1; agreement is then with the same policy under auto "
                     "[default: auto]")  # fmt: skip
    how.add_argument("--quantization", type=_names, help=f"of {','.join(QUANTIZATIONS)}: how a local model stores "
                     "weights; agreement is then with the same policy under none [default: none]")  # fmt: skip
    how.add_argument("--kv-budget", type=positive, metavar="N", help="keys and values to keep before the open block, "
                     "in tokens [default: all]")  # fmt: skip
    how.add_argument("--kv-score", type=_names, help="with it: who stays, of rkv,attention,recent,random "
                     f"[default: {defaults.kv_score}]")  # fmt: skip
    how.add_argument("--kv-buffer", type=positive, metavar="N", help=f"with it [default: {defaults.kv_buffer}]")
    how.add_argument("--no-agreement", action="store_true", help="spare the exact decode, which takes the longest")
    how.add_argument("--concurrency", type=positive, default=32, help="questions in flight [default: 32]")
    out = parser.add_argument_group("what comes out")
    form = out.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help='{"rows": […]}, {"calibration": {…}} or {"decisions": […]}, '
                      "on standard output, nothing else there")  # fmt: skip
    form.add_argument("--markdown", action="store_true", help="one line per policy, for documents")
    out.add_argument("--plot", type=Path, metavar="FILE.png", help="accuracy against tokens per forward")
    return parser.parse_args(argv)


def _lookaheads(text: str) -> list[Lookahead]:
    return [CANVAS if name == CANVAS else count(name) for name in _names(text)]


def _guidances(text: str) -> list[str | None]:
    names = _names(text)
    for name in names:
        if name not in (FREE, *GUIDANCES):
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join((FREE, *GUIDANCES))}")
    return [None if name == FREE else name for name in names]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
