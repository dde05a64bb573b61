"""Constraints by hand: automata over token ids, as tables of which tokens lead where."""

import numpy as np

from engine.core.constraint import NEVER, Constraint


def automaton(vocab, steps, accepting, stops):
    """`steps[state]` has {token: next state}; `stops` are the ids that end the answer. State 0 is the start."""
    states = len(steps)
    table = np.full((states, vocab), states + 1)
    for state, onwards in enumerate(steps):
        for token, to in onwards.items():
            table[state, token] = to
    table[:, list(stops)] = states + 1
    columns, classes = np.unique(table.T, axis=0, return_inverse=True)
    columns = [tuple(column) for column in columns.tolist()]
    nowhere = (states + 1,) * states
    named = [nowhere, *(column for column in columns if column != nowhere)]
    place = np.array([named.index(column) for column in columns])
    classes = place[classes.reshape(-1)]
    classes[list(stops)] = len(named)
    step = np.full((states + 2, len(named) + 1), states + 1, np.int32)
    step[:states, :-1] = np.array(named).T
    step[list(accepting), -1] = states
    step[states, -1] = states
    accepts = np.zeros(states, np.bool_)
    accepts[list(accepting)] = True
    distance, before = np.where(accepts, 0, NEVER), None
    while not np.array_equal(distance, before):
        before = distance.copy()
        for state in reversed(range(states)):  # most lead to later ones
            for to in steps[state].values():
                distance[state] = min(distance[state], distance[to] + 1)
    return made(classes, step, distance.astype(np.int32), accepts)


def made(classes, step, distance, accepts):
    """Edges and labels of a table of steps, pair of states by pair of states."""
    end = len(distance)
    live = [*(distance < NEVER), True, False]
    step = np.array([[to if live[src] and live[to] else end + 1 for to in row] for src, row in enumerate(step)])
    edges, labels = [], []
    for src in range(end + 1):
        for dst in np.unique(step[src][step[src] <= end]):
            some = tuple(np.flatnonzero(step[src] == dst))
            labels += [some] if some not in labels else []
            edges.append((src, dst, labels.index(some)))
    src, dst, label = np.array(edges, np.int32).T
    return Constraint(
        classes=np.asarray(classes, np.int64),
        step=step.astype(np.int32),
        edge_src=src,
        edge_dst=dst,
        edge_label=label,
        label_start=np.cumsum([0, *map(len, labels)]).astype(np.int32),
        label_classes=np.array([one for label in labels for one in label], np.int32),
        distance=distance,
        accepts=accepts,
    )


VOCAB, STOP, MASK = 8, 6, 7
"""Of the automata below."""
AUTOMATA = {
    "a*b": automaton(VOCAB, [{0: 0, 1: 1}, {}], [1], [STOP]),
    "(0|1|2)*": automaton(VOCAB, [{0: 0, 1: 0, 2: 0}], [0], [STOP]),
    "(01)*": automaton(VOCAB, [{0: 1}, {1: 0}], [0], [STOP]),
    "0(1|2){2,4}|35": automaton(
        VOCAB, [{0: 1, 3: 6}, {1: 2, 2: 2}, {1: 3, 2: 3}, {1: 4, 2: 4}, {1: 5, 2: 5}, {}, {5: 5}], [3, 4, 5], [STOP]
    ),
    "even 0s, any others but no 4 behind a 5": automaton(
        VOCAB,
        [
            {0: 1, 1: 0, 2: 0, 3: 0, 4: 0, 5: 2},
            {0: 0, 1: 1, 2: 1, 3: 1, 4: 1, 5: 3},
            {0: 1, 1: 0, 2: 0, 3: 0, 5: 2},
            {0: 0, 1: 1, 2: 1, 3: 1, 5: 3},
        ],
        [0, 2],
        [STOP],
    ),
}
