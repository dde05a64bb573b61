"""The requests of the load: random prompts of given lengths, or those of a JSONL file. Seeded; knows no server."""

import json
import random
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from engine import ConfigError

WORDS = (
    *("sun", "moon", "tree", "cow", "dog", "cat", "bird", "fish", "red", "blue", "green", "house", "river", "stone"),
    *("cloud", "road", "day", "night", "king", "queen", "apple", "bread", "milk", "ball", "book", "door", "hand"),
)
"""Words so common that each is one token for most tokenizers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """One request of the load."""

    prompt: str | list[int]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths drawn uniformly between two bounds, both included."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "Lengths":
        """`128` or `64-256`. Raises ConfigError."""
        low, dash, high = text.partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise ConfigError(f"{text!r} is no length; give a number or a range, as in 64-256")
        lengths = cls(int(low), int(high if dash else low))
        if not 0 < lengths.low <= lengths.high:
            raise ConfigError(f"{text!r} is no range of lengths: the bounds must be positive and in order")
        return lengths

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)


def random_requests(
    number: int, prompt: Lengths, output: Lengths, seed: int, *, vocab_size: int | None = None
) -> list[LoadRequest]:
    """Prompts of random words; with a `vocab_size`, of random token ids below it. The same seed gives the same."""
    rng = random.Random(seed)

    def draw_prompt() -> str | list[int]:
        length = prompt.draw(rng)
        if vocab_size:
            return [rng.randrange(vocab_size) for _ in range(length)]
        return " ".join(rng.choice(WORDS) for _ in range(length))

    return [LoadRequest(prompt=draw_prompt(), max_tokens=output.draw(rng)) for _ in range(number)]


def from_file(path: Path, number: int | None, output: Lengths, seed: int) -> list[LoadRequest]:
    """Lines of {"prompt", optionally "max_tokens"}: each once, or `number` of them, repeated from the start as needed.

    Raises ConfigError with the number of the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8") from None
    rng = random.Random(seed)
    requests = [
        _request(line, f"{path}, line {i}", output.draw(rng)) for i, line in enumerate(lines, start=1) if line.strip()
    ]
    if not requests:
        raise ConfigError(f"{path} holds no prompts")
    return list(islice(cycle(requests), number or len(requests)))


def _request(line: str, where: str, max_tokens: int) -> LoadRequest:
    try:
        fields: Any = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is not valid JSON: {error}") from None
    match fields:
        case {"prompt": str(prompt) | [*prompt]} if isinstance(prompt, str) or all(type(i) is int for i in prompt):
            given = fields.get("max_tokens", max_tokens)
            if type(given) is int and given > 0:
                return LoadRequest(prompt=prompt, max_tokens=given)
            raise ConfigError(f"{where}: `max_tokens` must be a whole number above 0")
    raise ConfigError(f"{where} needs a `prompt` that is a string or a list of token ids")
