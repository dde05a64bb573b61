"""Two ranks in one process: the followers are threads, quicker to start than processes; all else is as it is."""

from multiprocessing import Pipe
from pathlib import Path
from threading import Thread

from engine import EngineConfig, load
from engine.core.errors import DeviceLost
from engine.execution.ranks.follower import follow
from engine.execution.ranks.group import Group
from engine.execution.ranks.processes import Followers
from engine.execution.ranks.runner import RankedRunner

DATA = Path(__file__).parents[3] / "data"
FOLDERS = sorted(path.parent.name for path in DATA.glob("*tiny*/config.json"))


def start_threads(size):
    connections = []
    for _ in range(size - 1):
        ours, theirs = Pipe()
        Thread(target=live, args=(theirs,), daemon=True).start()
        connections.append(ours)
    return Followers(connections)


def live(connection):
    try:
        follow(connection)
    except DeviceLost:
        connection.close()


class Ranks:
    """`ranks(folder, **settings)`: an engine on two ranks. Each call is checked for what it says that it exchanges."""

    def __init__(self, patch):
        self._runners = []
        self._ends = []
        own, together = RankedRunner.__init__, RankedRunner._together

        def noted(runner, *arguments, **others):
            own(runner, *arguments, **others)
            self._runners.append(runner)
            runner.group.seen = []

        def checked(runner, call, work):
            begun = len(runner.group.seen)
            result = together(runner, call, work)
            assert runner.group.seen[begun:] == call.exchanges(runner)
            return result

        watch(patch)
        patch.setattr(RankedRunner, "__init__", noted)
        patch.setattr(RankedRunner, "_together", checked)
        patch.setattr("engine.assemble.start_processes", self._start)

    def __call__(self, folder, **settings):
        config = {"model": str(folder), "device": "cpu", "dtype": "float32", "tensor_parallel_size": 2} | settings
        return load(EngineConfig(**config))

    def model(self, engine, number):
        """The part of the model that this rank has."""
        first = self._runners.index(engine.runner) // 2 * 2
        return next(each.model for each in self._runners[first : first + 2] if each.group.rank.number == number)

    def close(self):
        for followers in self._ends:
            followers.close()

    def _start(self, size):
        self._ends.append(start_threads(size))
        return self._ends[-1]


def watch(patch):
    """`group.seen` has what a group has exchanged."""
    for kind, own in [("sum", Group.sum), ("share", Group.share), ("gather", Group.gather)]:

        def noted(group, tensor, kind=kind, own=own):
            group.seen.append((kind, tuple(tensor.shape), tensor.dtype))
            return own(group, tensor)

        patch.setattr(Group, kind, noted)
