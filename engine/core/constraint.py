"""What an answer must be, as an automaton over token ids (`Constraint`).

Data only: whoever makes one knows the vocabulary's spellings, `engine.scoring.chain` decodes under it. Nothing here is
changed after it is made, so that requests share one.

Tokens that lead from every state to the same state are one class. Class 0 fits nowhere: the mask, special tokens. The
last class holds the ids that end the answer: they lead from accepting states to END, and from END to END.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


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
        return self.step.shape[1]

    @cached_property
    def least_tokens(self) -> int:
        """The length in tokens of its shortest answer."""
        return int(self.distance[0])

    def advanced(self, state: int, tokens: NDArray[np.int64]) -> int:
        """The state after these tokens [count]; behind the answer, any token may stand."""
        for token_class in self.classes[tokens].tolist():
            if state == self.end:
                break
            state = int(self.step[state, token_class])
        return state
