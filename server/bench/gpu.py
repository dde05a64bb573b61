"""`unmask bench gpu`: what a GPU is asked within minutes. The engine asks, judges and prints."""

from collections.abc import Sequence

from engine import add_gpu_arguments, bench_gpu
from server.arguments import Parser


def main(argv: Sequence[str]) -> int:
    """Returns the exit code. Raises ConfigError for errors that the user can fix."""
    parser = Parser(prog="unmask bench gpu")
    add_gpu_arguments(parser)
    return bench_gpu(parser.parse_args(argv[1:]))
