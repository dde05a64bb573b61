"""What a request asks of each forward, by how its model attends: rows, and what they see.

Where rows see the whole canvas, the steps are those of `engine.bench.roofline.steps`, which are held against the
engine's. Block-causal models compute a prompt once, in parts if need be, and each finished block with the next one's
first step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from engine.bench.method import Method
from engine.bench.roofline.steps import steps
from engine.bench.timed_run import Workload
from engine.core.errors import ConfigError


class Ask(NamedTuple):
    """What a request wants of one forward."""

    before: int
    """Rows before the others, which a forward may compute in parts."""
    rows: int
    """Rows that are computed together, or not at all."""
    scored: int
    end: int
    """One past the last position that is seen."""
    ends_block: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How answers are decoded. Raises ConfigError on what cannot be."""

    cache: str
    """`block` for block-causal models, else a method of the engine's, as in `dual+32`."""
    block: int = 32
    """Tokens of a block."""
    tokens_per_forward: int = 4
    """Tokens that each step of a block decodes."""

    def __post_init__(self) -> None:
        if not self.is_block_causal:
            Method.named(f"engine/{self.cache}")
        if not 1 <= self.tokens_per_forward <= self.block or self.block % self.tokens_per_forward:
            raise ConfigError(
                f"tokens_per_forward is {self.tokens_per_forward}; it must divide the block, {self.block} tokens"
            )

    @property
    def is_block_causal(self) -> bool:
        """Whether rows see nothing behind their block."""
        return self.cache == "block"

    def canvas(self, prompt: int, output: int) -> int:
        """Positions of prompt and answer, in whole blocks."""
        start = self._first_block(prompt)
        return start - (start - prompt - output) // self.block * self.block

    def asks(self, prompt: int, output: int, cached: int = 0) -> Iterator[Ask]:
        """Of every step of a request; `cached` are tokens of the prompt whose keys and values are there."""
        return self._block_causal(prompt, output, cached) if self.is_block_causal else self._full(prompt, output)

    def _first_block(self, prompt: int) -> int:
        return prompt // self.block * self.block if self.is_block_causal else prompt

    def _full(self, prompt: int, output: int) -> Iterator[Ask]:
        workload = Workload(
            prompt=prompt,
            gen=self.canvas(prompt, output) - prompt,
            block=self.block,
            tokens_per_step=self.tokens_per_forward,
        )
        per_block = self.block // self.tokens_per_forward
        for number, step in enumerate(steps(f"engine/{self.cache}", workload), 1):
            yield Ask(0, step.rows, step.scored, step.visible, number % per_block == 0)

    def _block_causal(self, prompt: int, output: int, cached: int) -> Iterator[Ask]:
        final = cached
        for start in range(self._first_block(prompt), prompt + output, self.block):
            end = start + self.block
            for left in range(end - max(start, prompt), 0, -self.tokens_per_forward):
                yield Ask(start - final, self.block, left, end, left <= self.tokens_per_forward)
                final = start
