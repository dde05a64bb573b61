"""`unmask trace FILE.json --svg FILE --gif FILE`: moving pictures of an answer that was watched."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine import ConfigError
from server.arguments import Parser, count
from server.trace import gif, svg
from server.trace.film import NoTrace, film_of


def main(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    if not (args.svg or args.gif):
        raise ConfigError("say what to draw: --svg FILE, --gif FILE or both")
    try:
        film = film_of(_read(args.answer), args.choice)
    except NoTrace as error:
        raise ConfigError(f"{args.answer}: {error}") from None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ConfigError(f"{args.answer} is no answer of this server ({type(error).__name__}: {error})") from None
    try:
        if args.svg:
            args.svg.write_text(svg.drawn(film), encoding="utf-8")
        if args.gif:
            gif.write(film, args.gif)
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be written: {error.strerror}") from None
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="unmask trace",
        description="Draw how an answer was decoded, as pictures that move.",
        epilog='An answer is what a request with `"diffusion": {"trace": true}` and without `stream` gets, as a file.',
    )
    parser.add_argument("answer", type=Path, metavar="FILE.json", help="a whole answer; - is standard input")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write a picture that browsers and READMEs show")
    parser.add_argument("--gif", type=Path, metavar="FILE", help="write one for all else; needs `unmask[plot]`")
    parser.add_argument("--choice", type=count, default=0, metavar="N", help="the choice to draw (%(default)s)")
    return parser


def _read(path: Path) -> Any:
    """Raises ConfigError."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    try:
        return json.loads(text)
    except ValueError:
        raise ConfigError(f"{path} is no JSON; a stream cannot be drawn, ask without `stream`") from None
