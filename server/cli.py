"""The command `unmask`: a table of subcommands, each a module with `main(argv) -> exit code`.

Errors that the user can fix are one line on stderr and exit code 2, never a stack trace.
"""

import argparse
import gc
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn

from server.arguments import hint

USAGE_ERROR = 2
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand. Its module is imported when it is called, because it may import torch."""

    module: str
    summary: str


COMMANDS = {
    "serve": Command("server.commands.serve", "serve a model behind the OpenAI API"),
    "run-batch": Command("server.commands.run_batch", "answer a file of requests in OpenAI's batch format, offline"),
    "chat": Command("server.chat.command", "talk to a model, and watch it decode"),
    "trace": Command("server.trace.command", "draw how an answer was decoded, as a picture that moves"),
    "bench": Command(
        "server.bench.command", "measure speed: of decoding, of a server under load, and what hardware allows"
    ),
    "eval": Command("server.eval.command", "measure what decoding policies cost in quality"),
}


def run() -> NoReturn:
    """The entry point of the process. Exits with `main`'s code."""
    code = main()
    # The interpreter's last garbage collection would walk all of torch, and delay the exit by seconds for nothing.
    gc.freeze()
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    name, rest = _parse(sys.argv[1:] if argv is None else argv)
    # Process 1 of a container ignores SIGTERM by default; without this handler, it would do so while it imports.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        command = import_module(COMMANDS[name].module)
        from engine import ConfigError, LoadError  # here, so that `--version` does not import torch

        try:
            return int(command.main(rest))
        except (ConfigError, LoadError) as error:
            sys.stderr.write(f"unmask: {' '.join(str(error).split())}\n")
            return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """argparse without the usage lines before an error message."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"unmask: {message}\n")


def _parse(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The subcommand and the arguments after it, which the subcommand parses.

    `help bench serve` means `bench serve --help`.
    """
    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    width = max(map(len, COMMANDS))
    parser = _Parser(
        prog="unmask",
        description="An OpenAI-compatible inference server for diffusion language models.",
        epilog="commands:\n" + "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"unmask {version('unmask')}")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="see below; each has its own --help")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...")
    given = parser.parse_args(argv)
    if given.command is None:
        parser.error(f"give a command: {' or '.join(COMMANDS)} (`unmask help` explains them)")
    if given.command not in COMMANDS:
        parser.error(f"{given.command} is no command, but {', '.join(COMMANDS)} are{hint(given.command, COMMANDS)}")
    return given.command, given.rest


if __name__ == "__main__":
    run()
