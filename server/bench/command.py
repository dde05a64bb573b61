"""`unmask bench`: a table of benchmarks, each a module with `main(argv) -> exit code`."""

import argparse
from collections.abc import Sequence
from importlib import import_module

from engine import ConfigError
from server.arguments import Parser, hint

COMMANDS = {
    "decode": ("server.bench.decode", "this engine and the papers' own loops decoding on this machine, in turns"),
    "host": ("server.bench.host", "what a step costs the host for each request, without a model"),
    "constraints": ("server.bench.constraints", "what structured outputs cost a step, without a model"),
    "decisions": ("server.bench.decisions", "questions a second of a running server, decided and asked by chat"),
    "gpu": ("server.bench.gpu", "a GPU: whether it computes right, waits where it should, and is as fast as predicted"),
    "serve": ("server.bench.serve.command", "a running OpenAI-compatible server under load"),
    "roofline": ("server.bench.roofline.command", "what a model can reach at most on given hardware, by arithmetic"),
    "simulate": ("server.bench.simulate.command", "a fleet under load, by arithmetic: waits, and replicas for a goal"),
}
"""The benchmarks by name: the module, which is imported when it is called, and a line of help."""


def main(argv: Sequence[str]) -> int:
    """Runs a benchmark, and returns its exit code. Raises ConfigError or LoadError for errors that the user can fix."""
    width = max(map(len, COMMANDS))
    parser = Parser(
        prog="unmask bench",
        description="Measures speed.",
        epilog="\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="?", metavar="WHAT", help="see below; each has its own --help")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...")
    given = parser.parse_args(argv)
    if given.what is None:
        raise ConfigError(f"say what to measure: unmask bench {' or '.join(COMMANDS)} (--help explains them)")
    if given.what not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise ConfigError(f"{given.what} is nothing that is measured, but {known} are{hint(given.what, COMMANDS)}")
    return int(import_module(COMMANDS[given.what][0]).main([given.what, *given.rest]))
