"""The flags of `unmask bench simulate`, and what they may not say together."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from engine import GEOMETRIES, HARDWARE, ROUTERS, ConfigError, EngineConfig, KVDtype
from server.arguments import Parser, count, positive, rate
from server.bench.simulate.arrivals import lengths

DEFAULT = EngineConfig(model="")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Raises ConfigError on a flag that says nothing, and on flags that may not stand together."""
    parser = Parser(
        prog="unmask bench simulate",
        description="How long requests would wait at a fleet of servers, and how many replicas they need: discrete "
        "events, with the engine's rules of admission and steps that take what the roofline says. Nothing is run.",
        allow_abbrev=False,
    )
    _add_replica(parser)
    fleet = parser.add_argument_group("the fleet")
    fleet.add_argument("--replicas", nargs="+", type=positive, metavar="N", help="each is simulated [default: 1]")
    fleet.add_argument("--router", nargs="+", choices=ROUTERS, default=["least-loaded"], metavar="ROUTER",
                       help=f"{', '.join(ROUTERS)} [default: least-loaded]")  # fmt: skip
    fleet.add_argument("--autoscale", type=_replicas, metavar="N-M", help="as many replicas as requests ask for")
    fleet.add_argument("--scale-at", type=rate, default=32.0, metavar="N",
                       help="requests for which one replica is wanted [default: 32]")  # fmt: skip
    fleet.add_argument("--start-seconds", type=rate, default=120.0, metavar="S",
                       help="until a new replica serves [default: 120]")  # fmt: skip
    fleet.add_argument("--down-after", type=rate, default=300.0, metavar="S",
                       help="fewer replicas were enough for so long before one leaves [default: 300]")  # fmt: skip
    what = parser.add_argument_group("what arrives")
    what.add_argument(
        "--rate", nargs="+", type=rate, default=[], metavar="R", help="requests a second; each is simulated"
    )
    what.add_argument("--seconds", type=rate, default=600.0, metavar="S", help="for which they arrive [default: 600]")
    what.add_argument("--warm-up", type=count, default=60, metavar="S",
                      help="at the start, in which nothing is measured [default: 60]")  # fmt: skip
    what.add_argument("--burstiness", type=rate, default=1.0, metavar="CV",
                      help="deviation of gaps over their mean; 1 is a Poisson process [default: 1]")  # fmt: skip
    for flag, default in (("--prompt-length", "lognormal:600:1"), ("--output-length", "exponential:250")):
        distributions = "512, 64-256, exponential:MEAN or lognormal:MEDIAN:SIGMA"
        what.add_argument(
            flag, type=lengths, default=default, metavar="L", help=f"tokens: {distributions} [default: {default}]"
        )
    what.add_argument("--turns", type=positive, default=1, metavar="N",
                      help="of a conversation: a prompt begins with all that was said before [default: 1]")  # fmt: skip
    what.add_argument("--think-seconds", type=rate, default=30.0, metavar="S",
                      help="between two turns, in the mean [default: 30]")  # fmt: skip
    columns = "seconds, prompt_tokens, output_tokens"
    what.add_argument("--trace", type=Path, metavar="FILE",
                      help=f"instead: CSV or JSONL of {columns}, or as Azure publishes it")  # fmt: skip
    what.add_argument("--trace-speed", type=rate, default=1.0, metavar="X", help="times as fast [default: 1]")
    what.add_argument("--seed", type=count, default=0, metavar="N", help="[default: 0]")
    goal = parser.add_argument_group("what is wanted: without --replicas, the fewest that reach it are looked for")
    goal.add_argument("--slo-seconds", type=rate, metavar="S", help="within which requests are answered")
    goal.add_argument("--slo-share", type=rate, default=0.99, metavar="P", help="of all, refused too [default: 0.99]")
    goal.add_argument("--slo-of", choices=("first-block", "answer"), default="first-block",
                      help="up to where seconds count [default: first-block]")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw waits by rate to this picture")
    args = parser.parse_args(argv)
    _check(args)
    return args


def _add_replica(parser: argparse.ArgumentParser) -> None:
    replica = parser.add_argument_group("one replica")
    replica.add_argument("--model", default="llada-8b", metavar="MODEL",
                         help=f"{', '.join(GEOMETRIES)}, or a folder or hub id [default: llada-8b]")  # fmt: skip
    replica.add_argument("--hardware", choices=HARDWARE, default="h100", metavar="GPU",
                         help=f"{', '.join(HARDWARE)} [default: h100]")  # fmt: skip
    replica.add_argument("--devices", type=positive, default=1, metavar="N",
                         help="of a machine that compute each step together [default: 1]")  # fmt: skip
    replica.add_argument("--efficiency", type=rate, default=0.5, metavar="X",
                         help="share of the roofline that is reached [default: 0.5, as an H100 did]")  # fmt: skip
    replica.add_argument("--cache", metavar="POLICY", help="[default: dual, or block for block-causal models]")
    replica.add_argument("--lookahead", type=_lookahead, default=32, metavar="N|null", help="[default: 32]")
    replica.add_argument("--block-length", type=positive, metavar="N", help="[default: the model's, or 32]")
    replica.add_argument("--tokens-per-forward", type=positive, metavar="N",
                         help="that a step of a request decodes [default: 4, or half a block]")  # fmt: skip
    replica.add_argument("--kv-dtype", choices=get_args(KVDtype), default="auto", help="[default: auto]")
    for name in ("max_running_requests", "max_queued_requests"):
        default = getattr(DEFAULT, name)
        replica.add_argument(f"--{name.replace('_', '-')}", type=positive, default=default, metavar="N",
                             help=f"[default: {default}]")  # fmt: skip
    replica.add_argument("--max-model-len", type=positive, default=4096, metavar="N", help="[default: 4096]")
    replica.add_argument("--max-batch-rows", type=positive, metavar="N", help="[default: the engine's]")
    replica.add_argument("--kv-cache-tokens", type=positive, metavar="N", help="[default: what fits, as the engine]")
    replica.add_argument("--prefix-hits", type=_share, default=0.0, metavar="P",
                         help="share of prompts that is always cached, if block-causal [default: 0]")  # fmt: skip


def _check(args: argparse.Namespace) -> None:
    """What several flags may not say together. Raises ConfigError."""
    if bool(args.rate) == bool(args.trace):
        raise ConfigError("say what arrives: --rate R, or --trace FILE" if not args.rate else "--rate or --trace")
    if args.autoscale and args.replicas:
        raise ConfigError("--autoscale says how many replicas there are: leave --replicas out")
    if args.efficiency > 1:
        raise ConfigError(f"--efficiency {args.efficiency:g} is more than the roofline, 1")
    for name in ("slo_share", "prefix_hits"):
        if not 0 <= getattr(args, name) <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(args, name):g} is no share from 0 to 1")
    if not args.trace and args.warm_up >= args.seconds:
        raise ConfigError(f"--warm-up {args.warm_up} must be less than --seconds {args.seconds:g}")


def _replicas(text: str) -> tuple[int, int]:
    """`0-16`: at least and at most."""
    least, dash, most = text.partition("-")
    if not (dash and least.isdecimal() and most.isdecimal() and int(least) <= int(most) and int(most)):
        raise argparse.ArgumentTypeError(f"{text!r} is no range of replicas, as in 1-16")
    return int(least), int(most)


def _share(text: str) -> float:
    """0 or a number above it."""
    return 0.0 if text == "0" else rate(text)


def _lookahead(text: str) -> int | None:
    return None if text == "null" else count(text)
