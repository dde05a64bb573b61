"""The grammar of the demo models' stories, short and long, read both ways: `tell` writes one, `is_story` checks one.

A line's slots take one word each, so a story's length depends only on how many names and things were asked for:
a model that writes all positions in parallel then never has to agree with itself on a length. Where nobody and nothing
was asked for, people and things are slots too.
"""

import re
from random import Random

from engine.demo.families.words import ANIMALS, NAMES, THINGS

SLOTS = {
    "when": ("morning", "evening", "day", "summer"),
    "place": ("park", "beach", "forest", "market", "garden", "river", "village", "school"),
    "kind": ("red", "blue", "green", "big", "small", "new", "golden", "wooden"),
    "weather": ("warm", "sunny", "bright", "windy", "quiet"),
    "mood": ("happy", "proud", "glad", "merry"),
    "name": NAMES,
    "thing": THINGS,
    "animal": ANIMALS,
    "trouble": ("sad", "hungry", "lost", "cold", "tired"),
    "time": ("night", "day", "week", "while"),
    "find": ("key", "map", "coin", "shell", "flute", "lamp"),
    "where": ("tree", "bridge", "stone", "door", "hill"),
    "song": ("happy", "long", "old", "quiet", "new"),
}
_SLOT = re.compile(r"<(\w+?)(\d*)>")
"""A slot. One with a number keeps its word wherever it comes again."""


def _lines(names: tuple[str, ...], things: tuple[str, ...], *, is_long: bool) -> list[str]:
    """The story's sentences, with `<slot>` where a word is free."""
    names, things = names or ("<name1>",), things or ("<thing1>",)
    who, was = " and ".join(names), "were" if len(names) > 1 else "was"
    if not is_long:
        return [
            f"One <when> {who} went to the <place>.",
            f"{names[0]} had a <kind> {things[0]}.",
            *([f"{names[-1]} found a <kind> {things[1]}."] if len(things) > 1 else []),
            "It was a <weather> day.",
            f"In the end {who} {was} <mood>.",
        ]
    return [
        f"One <when> {who} went to the <place>.",
        f"{names[0]} had a <kind1> {things[0]}.",
        "It was a <weather> day.",
        f"On the way {who} met a <animal1>.",
        "The <animal1> was very <trouble>.",
        f"So {names[-1]} gave the <kind1> {things[0]} to the <animal1>.",
        "After a <time> they came to a <kind> <where1>.",
        f"Behind the <where1> {names[0]} found a <find1>.",
        "The <animal1> took the <find1> and sang a <song> song.",
        *([f"{names[-1]} also found a <kind> {things[1]}."] if len(things) > 1 else []),
        f"In the end {who} and the <animal1> were <mood>." if len(names) == 1 else f"In the end {who} {was} <mood>.",
    ]


def tell(rng: Random, names: tuple[str, ...], things: tuple[str, ...], *, is_long: bool = False) -> str:
    """A story about these names and things, or about any where there are none."""
    kept: dict[str, str] = {}

    def word(slot: re.Match[str]) -> str:
        drawn = rng.choice(SLOTS[slot[1]])
        return kept.setdefault(slot[0], drawn) if slot[2] else drawn

    return _SLOT.sub(word, " ".join(_lines(names, things, is_long=is_long)))


def is_story(text: str, names: tuple[str, ...], things: tuple[str, ...], *, is_long: bool = False) -> bool:
    """Whether `text` is a story of this grammar about exactly these names and things."""
    named: set[str] = set()

    def pattern(slot: re.Match[str]) -> str:
        words, group = "|".join(SLOTS[slot[1]]), f"{slot[1]}{slot[2]}"
        if not slot[2]:
            return f"(?:{words})"
        if group in named:
            return f"(?P={group})"
        named.add(group)
        return f"(?P<{group}>{words})"

    lines = " ".join(map(_escape, _lines(names, things, is_long=is_long)))
    return re.fullmatch(_SLOT.sub(pattern, lines), text) is not None


def _escape(line: str) -> str:
    return line.replace(".", r"\.")
