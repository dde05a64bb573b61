"""The slow twin of `engine.scoring.constrained.chain`: every sequence of tokens of a block, one after the other."""

import itertools
import math

import numpy as np


def advanced(constraint, state, token):
    if state == constraint.end:
        return state
    return int(constraint.step[state, constraint.classes[token]])


def ends(constraint, start, tokens, room):
    """Whether the answer can go on after these tokens, and end within `room`."""
    state = start
    for token in tokens:
        state = advanced(constraint, state, token)
        if state == constraint.dead:
            return False
    return state == constraint.end or constraint.distance[state] <= room


def sequences(constraint, start, fixed, room):
    """All valid ones of a block with these `fixed` tokens (or None). Masks behind the answer take its last class."""
    vocab, stops = (
        len(constraint.classes),
        set(np.flatnonzero(constraint.classes == constraint.num_classes - 1).tolist()),
    )
    for tokens in itertools.product(*(range(vocab) if one is None else [one] for one in fixed)):
        states = list(
            itertools.accumulate(tokens, lambda state, token: advanced(constraint, state, token), initial=start)
        )
        behind = [at for at, state in enumerate(states[:-1]) if state == constraint.end and fixed[at] is None]
        if ends(constraint, start, tokens, room) and all(tokens[at] in stops for at in behind):
            yield tokens


class Twin:
    """`logits` [positions, vocab]; positions that are fixed are not looked at."""

    def __init__(self, constraint, start, fixed, room, logits):
        self.logits, self.fixed = logits, fixed
        self.valid = list(sequences(constraint, start, fixed, room))
        self.weights = [self.weight(tokens) for tokens in self.valid]

    def weight(self, tokens):
        return sum(float(self.logits[at, token]) for at, token in enumerate(tokens) if self.fixed[at] is None)

    @property
    def best(self):
        return max(self.weights)

    @property
    def log_total(self):
        return self.best + math.log(math.fsum(math.exp(weight - self.best) for weight in self.weights))

    def marginals(self):
        """[positions, vocab]"""
        shares = np.exp(np.array(self.weights) - self.log_total)
        marginals = np.zeros(self.logits.shape)
        for tokens, share in zip(self.valid, shares, strict=True):
            marginals[np.arange(len(tokens)), tokens] += share
        return marginals
