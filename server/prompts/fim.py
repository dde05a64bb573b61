"""Prompts in the templates of coder models that fill in the middle, turned into a hole for models that know none.

Editors write these templates themselves, by the name of a model. What they mean, a diffusion model does with any text
(`server.prompts.prompts`). A model whose tokenizer has such tokens is left to read them.
"""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Template:
    """The names of its three tokens, and how they are set off from the text."""

    prefix: str
    suffix: str
    middle: str
    gap: str = ""
    """Stands behind the first token, before the others, and behind the last one if text follows."""


TEMPLATES = (
    Template("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder
    Template("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    Template("<PRE>", "<SUF>", "<MID>", gap=" "),  # Code Llama
)


def is_templated(text: str) -> bool:
    """Whether the text may be in one of the templates."""
    return any(template.prefix in text for template in TEMPLATES)


def with_hole(text: str, length: int, known: Collection[str]) -> str:
    """The text with a hole of `length` positions, if it is in one of the templates and its tokens are not `known`.

    Text behind the last token stands before the hole: some write the suffix first, or the beginning of the middle. Any
    other text is returned as it is.
    """
    for template in TEMPLATES:
        if template.prefix in known:
            continue
        before, has_prefix, rest = text.partition(template.prefix)
        prefix, has_suffix, rest = rest.partition(template.suffix)
        suffix, has_middle, middle = rest.partition(template.middle)
        if has_prefix and has_suffix and has_middle:
            gap = template.gap
            prefix, suffix = prefix.removeprefix(gap).removesuffix(gap), suffix.removesuffix(gap)
            return f"{before}{prefix}{middle.removeprefix(gap)}<|fill:{length}|>{suffix}"
    return text
