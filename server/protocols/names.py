"""The client's names of a request's fields, for errors of modules that know a field by another name."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from engine import InvalidRequest
from server.prompts.convert import ENGINE_NAMES

_QUOTED = re.compile(r"`([a-z_][\w.]*)`")


class Names:
    """The body's names of what is served, and of the engine's fields."""

    def __init__(self, names: Mapping[str, str]) -> None:
        """`names`: dotted paths of what is served to those of the body; what lies within a path lies within its name.

        The names of `ENGINE_NAMES` hold where `names` has no other.
        """
        self._names = {**ENGINE_NAMES, **names}

    def of(self, path: str) -> str:
        """The name of the longest beginning of the path that has one, with the rest of the path."""
        known, rest = path, ""
        while known and known not in self._names:
            known, dot, last = known.rpartition(".")
            rest = f"{dot}{last}{rest}"
        return self._names[known] + rest if known else path

    @contextmanager
    def used(self) -> Iterator[None]:
        """Renames the fields that an InvalidRequest names: as `param`, and in its message."""
        try:
            yield
        except InvalidRequest as error:
            message = _QUOTED.sub(lambda found: f"`{self.of(found[1])}`", str(error))
            if error.param:
                begins = f"{error.param} "
                error.param = self.of(error.param)
                if message.startswith(begins):
                    message = f"{error.param} {message.removeprefix(begins)}"
            error.args = (message,)
            raise
