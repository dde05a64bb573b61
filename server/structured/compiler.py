"""Compiles specs to automata over one vocabulary. Runs in a worker process, so takes and gives what JSON can write."""

import base64
import json
import zlib
from collections.abc import Callable, Sequence
from typing import TypedDict, cast

import numpy as np
from safetensors.numpy import load, save

from server.structured import choice, grammar, tools
from server.structured.automaton import Automaton
from server.structured.budget import Budget
from server.structured.lift import Lifted, lift
from server.structured.regex import expressions, regex
from server.structured.schema import schema
from server.structured.schema.writer import Whitespace
from server.structured.spec import Kind, Spec
from server.structured.vocabulary import Vocabulary

BYTES_AS = "latin-1"
"""Each byte is the character of the same number."""


class Compilation(TypedDict):
    """What comes of a spec."""

    packed: str
    """A packed `Lifted`."""
    told: list[str]
    """What the operator should know of it: sentences for the log."""


class Compiler:
    """The vocabulary of one tokenizer. To make one takes seconds for a hundred thousand tokens."""

    def __init__(self, spellings: Sequence[str], stop_ids: Sequence[int]) -> None:
        """`spellings`: each token's bytes, as `BYTES_AS` writes them. `stop_ids`: the tokens that end an answer."""
        self._vocabulary = Vocabulary([spelling.encode(BYTES_AS) for spelling in spellings])
        self._stop_ids = stop_ids

    def compile(self, kind: Kind, source: str, whitespace: Whitespace) -> Compilation:
        """The compiled spec. Raises the exceptions of `server.structured.refusals`."""
        budget = Budget()
        told: list[str] = []
        made = automaton(Spec(kind, source, whitespace), budget, told.append)
        return {"packed": packed(lift(made, self._vocabulary, self._stop_ids, budget)), "told": told}


def automaton(spec: Spec, budget: Budget, tell: Callable[[str], None] = lambda _: None) -> Automaton:
    """The automaton over bytes. `tell`: as `tools.automaton` has it.

    Raises Malformed, Unsupported, NoValue or TooLarge.
    """
    source = json.loads(spec.source)
    match spec.kind:
        case "schema":
            return schema.automaton(source, budget, spec.whitespace)
        case "regex":
            return expressions.automaton(regex.parsed(source), budget, is_search=False)
        case "choice":
            return choice.automaton(source, budget)
        case "grammar":
            return grammar.automaton(source, budget)
        case "tools":
            functions = [tools.CallableFunction(*function) for function in source["functions"]]
            return tools.automaton(
                functions,
                source["policy"],
                budget,
                is_parallel=source["is_parallel"],
                content=source["content"],
                whitespace=spec.whitespace,
                tell=tell,
            )


def packed(lifted: Lifted) -> str:
    """As text, which JSON can hold."""
    arrays = {name: np.ascontiguousarray(array) for name, array in lifted.items()}  # `save` takes memory as it lies
    return base64.b64encode(zlib.compress(save(arrays), level=1)).decode()


def unpacked(text: str) -> Lifted:
    """What `packed` was given.

    Threads may do this at the same time. They could not with numpy's own files, whose headers are Python: CPython
    3.11 may raise SystemError when two threads parse at once.
    """
    return cast(Lifted, load(zlib.decompress(base64.b64decode(text))))
