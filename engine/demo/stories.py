"""The grammar of the demo model's short stories, read both ways: `tell` writes a story, `is_story` checks one.

A line's slots take one word each, so a story's length depends only on how many names and things were asked for:
a model that writes all positions in parallel then never has to agree with itself on a length.
"""

import re
from random import Random

SLOTS = {
    "when": ("morning", "evening", "day", "summer"),
    "place": ("park", "beach", "forest", "market", "garden", "river", "village", "school"),
    "kind": ("red", "blue", "green", "big", "small", "new", "golden", "wooden"),
    "weather": ("warm", "sunny", "bright", "windy", "quiet"),
    "mood": ("happy", "proud", "glad", "merry"),
}
_SLOT = re.compile(r"<(\w+)>")


def _lines(names: tuple[str, ...], things: tuple[str, ...]) -> list[str]:
    """The story's sentences with `<slot>` where a word is free."""
    who, was = " and ".join(names), "were" if len(names) > 1 else "was"
    lines = [
        f"One <when> {who} went to the <place>.",
        f"{names[0]} had a <kind> {things[0]}.",
        "It was a <weather> day.",
        f"In the end {who} {was} <mood>.",
    ]
    if len(things) > 1:
        lines.insert(2, f"{names[-1]} found a <kind> {things[1]}.")
    return lines


def tell(rng: Random, names: tuple[str, ...], things: tuple[str, ...]) -> str:
    """A story about these names and things."""
    return _SLOT.sub(lambda slot: rng.choice(SLOTS[slot[1]]), " ".join(_lines(names, things)))


def is_story(text: str, names: tuple[str, ...], things: tuple[str, ...]) -> bool:
    """Whether `text` is a story of this grammar about exactly these names and things."""
    pattern = _SLOT.sub(lambda slot: f"(?:{'|'.join(SLOTS[slot[1]])})", " ".join(map(_escape, _lines(names, things))))
    return re.fullmatch(pattern, text) is not None


def _escape(line: str) -> str:
    return line.replace(".", r"\.")
