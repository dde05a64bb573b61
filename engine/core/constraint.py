"""What an answer must be, as an automaton over token ids (`Constraint`).

Data only: whoever makes one knows the vocabulary's spellings, `engine.scoring.constrained` decodes under it. Nothing
here is changed after it is made, so that requests share one.

Tokens that lead from every state to the same state are one class. Class 0 fits nowhere: the mask, special tokens. The
last class holds the ids that end the answer: they lead from accepting states to END, and from END to END.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

NEVER = 2**30
"""The distance of a state from which no accepted end can be reached."""
GROUP = 64
"""Entries of a group in `Constraint.groups`."""


@dataclass(frozen=True, eq=False)
class Constraint:
    """An automaton whose states are 0 to `states` - 1; `states` is END, behind the answer, and `states` + 1 is dead.

    State 0 is the start. END and the states from which an accepted end can be reached are live; all others are dead,
    and are one. Two constraints are equal only if they are the same object.
    """

    classes: NDArray[np.int64]
    """[vocab] the class of each token."""
    step: NDArray[np.int32]
    """[states + 2, classes] the state that a token of each class leads to."""
    edge_src: NDArray[np.int32]
    """[edges] ascending: pairs of live states, END among them, of which some class leads from one to the other."""
    edge_dst: NDArray[np.int32]
    """[edges] the other state; ascending where `edge_src` is equal."""
    edge_label: NDArray[np.int32]
    """[edges] the set of classes that lead there; equal sets are one label."""
    label_start: NDArray[np.int32]
    """[labels + 1] where each label's classes start in `label_classes`; the last one is its length."""
    label_classes: NDArray[np.int32]
    """The classes of all labels, each label's ascending."""
    distance: NDArray[np.int32]
    """[states] the least number of tokens to an accepted end; one that ends the answer does not count."""
    accepts: NDArray[np.bool_]
    """[states] whether the answer may end here."""

    @classmethod
    def of_steps(
        cls,
        classes: NDArray[np.int64],
        step: NDArray[np.int32],
        distance: NDArray[np.int32],
        accepts: NDArray[np.bool_],
    ) -> "Constraint":
        """The constraint of these tables, shaped as the fields; steps into states that are dead are left out."""
        end = len(distance)
        is_live = np.append(distance < NEVER, [True, False])
        step = np.where(is_live[:, None] & is_live[step], step, end + 1).astype(np.int32)
        src, token_class = np.nonzero(step[: end + 1] <= end)
        dst = step[src, token_class]
        order = np.lexsort((token_class, dst, src))
        src, dst, token_class = src[order], dst[order], token_class[order]
        first = np.flatnonzero(np.diff(src, prepend=-1) | np.diff(dst, prepend=-1))
        labels: dict[bytes, int] = {}
        sets = np.split(token_class.astype(np.int32), first[1:])
        label = [labels.setdefault(one.tobytes(), len(labels)) for one in sets if len(one)]
        contents = [np.frombuffer(one, np.int32) for one in labels]
        return cls(
            classes=classes,
            step=step,
            edge_src=src[first].astype(np.int32),
            edge_dst=dst[first].astype(np.int32),
            edge_label=np.array(label, np.int32),
            label_start=np.cumsum([0, *(len(one) for one in contents)]).astype(np.int32),
            label_classes=np.concatenate([np.empty(0, np.int32), *contents]),
            distance=distance,
            accepts=accepts,
        )

    @property
    def num_states(self) -> int:
        """Number of states but END and the dead one."""
        return len(self.distance)

    @property
    def end(self) -> int:
        """The state END."""
        return len(self.distance)

    @property
    def dead(self) -> int:
        return len(self.distance) + 1

    @property
    def num_classes(self) -> int:
        return int(self.step.shape[1])

    @property
    def least_tokens(self) -> int:
        """The length in tokens of its shortest answer; `NEVER` if there is none."""
        return int(self.distance[0])

    @cached_property
    def edge_start(self) -> NDArray[np.int32]:
        """[states + 2] where the edges of each state begin, END among them; the last one is their number."""
        return np.searchsorted(self.edge_src, np.arange(self.num_states + 2)).astype(np.int32)

    @property
    def num_labels(self) -> int:
        return len(self.label_start) - 1

    @cached_property
    def groups(self) -> tuple[NDArray[np.int32], ...]:
        """Tables that reduce something of each token to something of each class, in an order that is always the same.

        The first, int32 [groups, `GROUP`], has the tokens of each group, ascending, which are of one class. Each later
        one has the groups of the one before it, and the last one is a group for each class. A group that is not full
        ends with the number of tokens, or of groups.
        """
        order = np.argsort(self.classes, kind="stable")
        items, owner = order, self.classes[order]
        tables: list[NDArray[np.int32]] = []
        while not tables or len(tables[-1]) > self.num_classes:
            table, owner = _grouped(items, owner, self.num_classes)
            tables.append(table)
            items = np.arange(len(table))
        return tuple(tables)

    def advanced(self, state: int, tokens: NDArray[np.int64]) -> int:
        """The state after these tokens [count]; behind the answer, any token may stand."""
        for token_class in self.classes[tokens].tolist():
            if state == self.end:
                break
            state = int(self.step[state, token_class])
        return state

    def without(self, tokens: NDArray[np.int64]) -> "Constraint":
        """The same where these tokens [count] fit nowhere. Its states keep their numbers; some may be dead now."""
        classes = self.classes.copy()
        classes[tokens] = 0
        is_left = np.bincount(classes, minlength=self.num_classes) > 0
        step = np.where(is_left, self.step, self.dead)
        distance = self._distances(is_left)
        return Constraint.of_steps(classes, step, distance, self.accepts)

    def _distances(self, is_left: NDArray[np.bool_]) -> NDArray[np.int32]:
        """[states] anew where only some classes (bool [classes]) have tokens."""
        has_class = np.logical_or.reduceat(is_left[self.label_classes], self.label_start[:-1])
        inner = has_class[self.edge_label] & (self.edge_dst < self.num_states)
        src, dst = self.edge_src[inner], self.edge_dst[inner]
        distance = np.where(self.accepts, 0, NEVER).astype(np.int32)
        while True:
            nearer = distance.copy()
            np.minimum.at(nearer, src, np.minimum(distance[dst], NEVER - 1) + 1)
            if (nearer == distance).all():
                return distance
            distance = nearer


def _grouped(
    items: NDArray[np.int64], owner: NDArray[np.int64], num_classes: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """One table of `Constraint.groups`, and the class of each of its groups; `items` [count] have ascending owners."""
    counts = np.bincount(owner, minlength=num_classes)
    sizes = np.maximum(-(-counts // GROUP), 1)
    place = np.arange(len(items)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((int(sizes.sum()), GROUP), len(items), np.int32)
    table[np.repeat(np.cumsum(sizes) - sizes, counts) + place // GROUP, place % GROUP] = items
    return table, np.repeat(np.arange(num_classes), sizes)
