"""The flags of `unmask eval`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from engine import CACHES, DEMO_TASKS, UNMASKS, DiffusionParams
from server.arguments import Parser, count, listed, positive, rate
from server.eval import questions
from server.eval.policy import CANVAS, FREE, GUIDANCES, KV_DTYPES, QUANTIZATIONS, WINDOW, Lookahead

_EPILOG = """\
Each list makes rows: every cache with every unmask policy at each value of that policy's parameter. So
  unmask eval --cache none,dual --unmask fixed,threshold --tokens-per-step 1,2 --threshold 0.9
has six rows for each task. With --base-url, policies that are not named are left to the server, and without --cache and
--unmask no `diffusion` object is sent: any OpenAI-compatible server can be measured so."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags by name. Ends the process with a line and a usage text if one is wrong by itself."""
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
