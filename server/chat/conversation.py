"""The state of a conversation: its messages, how they are to be answered, and the commands that change both.

Knows neither terminal nor server.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.arguments import hint
from server.schemas import ChatRequest

AT_TOP = frozenset(ChatRequest.model_fields)
"""Settings that stand at the top of a request. All others are fields of its `diffusion`, which refuses unknown ones."""
OWN = ("messages", "model", "n", "stream", "stream_options", "diffusion")
"""Fields of a request that `unmask chat` itself fills in."""


class BadCommand(Exception):
    """A line that cannot be carried out. The message is for the user."""


@dataclass(slots=True)
class Conversation:
    system: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def set(self, name: str, value: str) -> None:
        """Answers are asked for with this setting from now on. Raises BadCommand for what is no setting."""
        check_name(name)
        self.settings[name] = value_of(value)

    def ask(self, question: str) -> None:
        self.messages.append({"role": "user", "content": question})

    def answered(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text})

    def body(self, **changed: Any) -> dict[str, Any]:
        """The request for the next answer. `changed`: settings of this one alone."""
        settings = {**self.settings, **changed}
        system = [{"role": "system", "content": self.system}] if self.system else []
        diffusion = {name: value for name, value in settings.items() if name not in AT_TOP}
        return {
            "messages": [*system, *self.messages],
            **{name: value for name, value in settings.items() if name in AT_TOP},
            **({"diffusion": diffusion} if diffusion else {}),
        }

    def forget_answer(self) -> str:
        """Takes the last question back, with its answer. Raises BadCommand if there is none."""
        while self.messages:
            message = self.messages.pop()
            if message["role"] == "user":
                return message["content"]
        raise BadCommand("there is no question yet")


@dataclass(frozen=True, slots=True)
class Command:
    """What `/name` does: returns what to tell the user."""

    usage: str
    summary: str
    run: Callable[[Conversation, list[str]], str]


def carried_out(line: str, conversation: Conversation) -> str:
    """Carries out a line that begins with `/`. Returns what to tell the user. Raises BadCommand."""
    try:
        name, *words = shlex.split(line[1:]) or [""]
    except ValueError as error:
        raise BadCommand(f"{error}".lower()) from None
    if name not in COMMANDS:
        raise BadCommand(f"/{name} is no command{hint(name, COMMANDS, lambda known: f'/{known}')} (/help lists all)")
    command = COMMANDS[name]
    if words and command.usage == f"/{name}":
        raise BadCommand(f"/{name} takes nothing behind it")
    return command.run(conversation, words)


def check_name(name: str) -> None:
    """Raises BadCommand for the name of no setting."""
    if name in OWN:
        raise BadCommand(f"{name} is no setting: `unmask chat` says it itself")


def value_of(text: str) -> Any:
    """A setting's value as JSON has it, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _set(conversation: Conversation, words: list[str]) -> str:
    if len(words) != 2:
        raise BadCommand("/set takes a name and a value, as in /set cache window")
    conversation.set(*words)
    return ""


def _unset(conversation: Conversation, words: list[str]) -> str:
    for name in words or list(conversation.settings):
        if name not in conversation.settings:
            raise BadCommand(f"{name} is not set{hint(name, conversation.settings)}")
        del conversation.settings[name]
    return ""


def _settings(conversation: Conversation, _: list[str]) -> str:
    lines = [f"{name} = {json.dumps(value)}" for name, value in conversation.settings.items()]
    return "\n".join(lines) or "nothing is set: the server's defaults hold"


def _system(conversation: Conversation, words: list[str]) -> str:
    conversation.system = " ".join(words)
    return "" if words else "the system's turn is empty"


def _undo(conversation: Conversation, _: list[str]) -> str:
    return f"forgotten: {conversation.forget_answer()}"


def _clear(conversation: Conversation, _: list[str]) -> str:
    conversation.messages.clear()
    return "the conversation begins anew"


def _save(conversation: Conversation, words: list[str]) -> str:
    if len(words) != 1:
        raise BadCommand("/save takes the name of a file")
    path = Path(words[0])
    try:
        path.write_text(json.dumps(conversation.body(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadCommand(f"{path} cannot be written: {error.strerror}") from None
    return f"{path} has the conversation, as the body of a request"


def _help(_conversation: Conversation, _: list[str]) -> str:
    told = {**{command.usage: command.summary for command in COMMANDS.values()}, **OTHERS}
    width = max(map(len, told))
    return "\n".join(f"{usage:<{width}}  {summary}" for usage, summary in told.items())


COMMANDS: Mapping[str, Command] = {
    "set": Command("/set NAME VALUE", "answer so from now on: temperature 0.7, cache window, block_length 8", _set),
    "unset": Command("/unset [NAME]", "the server's default again; without a name, of all", _unset),
    "settings": Command("/settings", "what is set", _settings),
    "system": Command("/system TEXT", "what the model is told before the conversation", _system),
    "undo": Command("/undo", "forget the last question and its answer", _undo),
    "clear": Command("/clear", "forget the whole conversation", _clear),
    "save": Command("/save FILE", "write the conversation to a file, as the body of a request", _save),
    "help": Command("/help", "this list", _help),
}
"""Those that only change the conversation, or tell of it."""
OTHERS: Mapping[str, str] = {
    "/compare NAME A B": "answer the last question with both values, side by side",
    "/retry": "answer the last question anew",
    "/quit": "end; so does Ctrl-D. Ctrl-C ends an answer",
}
"""Those that ask the server, or end the session: `server.chat.command` carries them out."""
