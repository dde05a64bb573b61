"""Texts of an automaton over bytes: random ones, and whether a schema's has a given one."""

import json

import numpy as np

from server.structured.automaton import distances
from server.structured.budget import Budget
from server.structured.schema import schema

HURRY = 400
"""Bytes after which a walk takes the shortest way to an end."""


def walks(automaton, seed, count):
    """`count` accepted texts as bytes; ways that few bytes take are taken as often as others."""
    generator = np.random.default_rng(seed)
    table = automaton.table
    distance = _to_the_end(automaton)
    for _ in range(count):
        state, text = 0, bytearray()
        while True:
            targets = np.setdiff1d(table[state], [automaton.dead])
            if automaton.accepts[state] and (not len(targets) or generator.random() < 0.3):
                break
            if len(text) > HURRY:
                targets = targets[distance[targets] == distance[targets].min()]
            target = generator.choice(targets)
            text.append(generator.choice(np.flatnonzero(table[state, automaton.letters] == target)))
            state = target
        yield bytes(text)


def _to_the_end(automaton):
    width = automaton.table.shape[1]
    return distances(
        np.repeat(np.arange(len(automaton.table)), width), automaton.table.ravel().astype(np.int64), automaton.accepts
    )


def accepts(constraint, value):
    """Whether a schema has the value, or the JSON text."""
    text = value if isinstance(value, str) else json.dumps(value)
    return schema.automaton(constraint, Budget()).matches(text)
