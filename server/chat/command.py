"""`unmask chat`: asks, shows answers as they are decoded, and carries out what begins with a slash."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from engine import ConfigError
from server.arguments import Parser, positive
from server.chat.answer import Answer
from server.chat.conversation import BadCommand, Conversation, carried_out, check_name, value_of
from server.remote import BrokenStream, complaint, connect, events, first_model, plain

PATH = "chat/completions"
MAX_HISTORY = 1000
"""Lines that are kept for the arrow keys."""
FRAMES_PER_SECOND = 20
UNKNOWN_FIELD = (400, 422)
"""Statuses with which servers refuse a field that they do not know."""


def main(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    conversation = Conversation(system=args.system)
    for name, value in args.set or ():
        try:
            conversation.set(name, value)
        except BadCommand as error:
            raise ConfigError(f"--set: {error}") from None
    with asyncio.Runner() as runner:
        http = connect(args.base_url, args.api_key)
        try:
            model = args.model or runner.run(first_model(http))
            session = Session(Console(), http, model, conversation, runner)
            if args.prompt or not sys.stdin.isatty():
                return session.once(" ".join(args.prompt) or sys.stdin.read().strip())
            return session.talk()
        finally:
            runner.run(http.aclose())


def _parser() -> Parser:
    parser = Parser(
        prog="unmask chat",
        description="Talk to a model, and watch it decode. /help lists what else a line may say.",
    )
    parser.add_argument("prompt", nargs="*", help="ask this, show the answer and end; standard input if it is a pipe")
    parser.add_argument(
        "--base-url", default="http://127.0.0.1:8000", help="any OpenAI-compatible server (%(default)s)"
    )
    parser.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY", "none"), help="or OPENAI_API_KEY")
    parser.add_argument("--model", help="the first that the server lists, unless given")
    parser.add_argument("--system", default="", metavar="TEXT", help="what the model is told before the conversation")
    parser.add_argument(
        "--set", nargs=2, action="append", metavar=("NAME", "VALUE"), help="as /set: temperature 0.7, cache window"
    )
    parser.add_argument("--max-tokens", type=positive, dest="max_tokens", help="as --set max_tokens N")
    return parser


class Session:
    """One conversation with one server."""

    def __init__(
        self,
        console: Console,
        http: httpx.AsyncClient,
        model: str,
        conversation: Conversation,
        runner: asyncio.Runner,
    ) -> None:
        self._console = console
        self._http = http
        self._model = model
        self._conversation = conversation
        self._runner = runner
        self._extras: tuple[Mapping[str, Any], ...] = (
            {"trace": True},  # where it is refused, the server is another
            {},
        )

    def once(self, question: str) -> int:
        """Asks one question. Returns the exit code."""
        if not question:
            raise ConfigError("there is no question: give it as an argument, or through a pipe")
        self._conversation.ask(question)
        answer = self._answer()
        return 0 if answer.error is None else 1

    def talk(self) -> int:
        """Until Ctrl-D or /quit."""
        where = f" at {self._http.base_url} · /help, Ctrl-D ends"
        self._console.print(Text.assemble((plain(self._model), "bold"), where, style="dim"))
        _remember_lines()
        while True:
            try:
                line = self._console.input("[b cyan]>[/] ").strip()
            except EOFError:
                self._console.print()
                return 0
            except KeyboardInterrupt:
                self._console.print("\nCtrl-D or /quit ends", style="dim")
                continue
            if line.split(maxsplit=1)[:1] == ["/quit"]:
                return 0
            try:
                self._say(line)
            except BadCommand as error:
                self._console.print(Text(str(error), style="red"))

    def _say(self, line: str) -> None:
        name, *words = line.split()[:5] or [""]
        match name:
            case "":
                return
            case "/compare":
                self._compare(words)
            case "/retry":
                self._conversation.ask(self._conversation.forget_answer())
                self._answer()
            case _ if line.startswith("/"):
                if told := carried_out(line, self._conversation):
                    self._console.print(Text(told, style="dim"))
            case _:
                self._conversation.ask(line)
                self._answer()

    def _answer(self) -> Answer:
        """Shows the answer to the last question, which becomes part of the conversation as far as it came."""
        answer = Answer()
        self._shown([(answer, self._conversation.body())], answer)
        self._console.print(Text(answer.text))
        if answer.error:
            self._console.print(Text(answer.error, style="red"))
        if answer.cost:
            self._console.print(Text(answer.cost, style="dim"))
        if answer.text:
            self._conversation.answered(answer.text)
        else:
            self._conversation.forget_answer()
        return answer

    def _compare(self, words: Sequence[str]) -> None:
        if len(words) != 3:
            raise BadCommand("/compare takes a name and two values, as in /compare cache dual none")
        name, *values = words
        check_name(name)
        question = self._conversation.forget_answer()
        self._conversation.ask(question)
        answers = [Answer(title=f"{name} = {value}") for value in values]
        bodies = [self._conversation.body(**{name: value_of(value)}) for value in values]
        panels = _Panels(answers)
        self._shown(list(zip(answers, bodies, strict=True)), panels)
        self._console.print(panels)
        if answers[0].text:
            self._conversation.answered(answers[0].text)
        else:
            self._conversation.forget_answer()

    def _shown(self, asked: Sequence[tuple[Answer, Mapping[str, Any]]], drawn: RenderableType) -> None:
        """Asks for all of them at once, and draws while they come. Ctrl-C ends them."""

        async def all_of_them() -> None:
            async with asyncio.TaskGroup() as group:
                for answer, body in asked:
                    group.create_task(self._ask(answer, body))

        live = Live(drawn, console=self._console, transient=True, refresh_per_second=FRAMES_PER_SECOND)
        with suppress(KeyboardInterrupt), live:
            self._runner.run(all_of_them())
            return
        for answer, _ in asked:
            if answer.finish_reason is None:
                answer.error = "stopped"

    async def _ask(self, answer: Answer, body: Mapping[str, Any]) -> None:
        """Reads the stream into `answer`, whose `error` says what went wrong."""
        try:
            for extra in self._extras:
                refusal = await self._read(answer, body, extra)
                if refusal is None:
                    self._extras = (extra,)
                    return
                if refusal.status not in UNKNOWN_FIELD:
                    break
            assert refusal
            answer.error = refusal.message
        except BrokenStream as error:
            answer.error = plain(str(error))
        except httpx.HTTPError as error:
            answer.error = plain(complaint(self._http, PATH, error))

    async def _read(self, answer: Answer, body: Mapping[str, Any], extra: Mapping[str, Any]) -> "_Refusal | None":
        """None, or why the server refuses this."""
        diffusion = {**extra, **body.get("diffusion", {})}
        whole = {
            **body,
            "model": self._model,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"diffusion": diffusion} if diffusion else {}),
        }
        async with self._http.stream("POST", PATH, json=whole) as response:
            if not response.is_success:
                told = (await response.aread()).decode(errors="replace")
                return _Refusal(response.status_code, _message(response.status_code, told))
            async for chunk in events(response):
                answer.read(chunk)
        return None


class _Refusal(NamedTuple):
    """An answer that is no success."""

    status: int
    message: str


class _Panels:
    """Answers side by side."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = answers

    def __rich__(self) -> RenderableType:
        side_by_side = Table.grid(expand=True)
        for _ in self._answers:
            side_by_side.add_column(ratio=1)
        side_by_side.add_row(
            *(
                Panel(Group(answer, Text(answer.cost, style="dim")), title=Text(answer.title))
                for answer in self._answers
            )
        )
        return side_by_side


def _message(status: int, body: str) -> str:
    """The server's own message, or as much of its answer as fits a line."""
    try:
        return plain(str(json.loads(body)["error"]["message"]))
    except (ValueError, KeyError, TypeError):
        return f"HTTP {status}: {plain(body):.200}"


def _remember_lines() -> None:
    """Lets the arrow keys bring back lines, those of earlier sessions too. Does nothing where there is no readline."""
    try:
        import atexit
        import readline
    except ImportError:
        return
    path = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "unmask" / "chat_history"
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.read_history_file(path)
        readline.set_history_length(MAX_HISTORY)
        atexit.register(readline.write_history_file, path)
