"""Reads the YAML file of settings into a flat table of keys. Knows YAML's pitfalls, but no setting.

The file may contain an API key, so error messages quote only the names of keys from it.
"""

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from engine import ConfigError

_QUOTED = re.compile(r"""'(?:\\?.|<[\w ]+>)'|(?P<of_file>(['"]).*\2)""")
"""Quoted text in PyYAML's messages: a single character or a token name (`<block end>`), else text of the file."""


class _Loader(yaml.SafeLoader):
    """A SafeLoader that raises an error for a duplicate key, of which PyYAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set[object]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name = key.value.replace("-", "_")
                if name in seen:
                    raise _Twice(key.value, key.start_mark)
                seen.add(name)
        return super().construct_mapping(node, deep=deep)


class _Twice(yaml.MarkedYAMLError):
    """A mapping has the same key twice."""

    def __init__(self, name: str, mark: yaml.Mark) -> None:
        super().__init__(problem=f"{name} is set twice", problem_mark=mark)


def read(path: Path, sections: frozenset[str]) -> dict[str, object]:
    """Values by key of the file, `flattened`. Raises ConfigError."""
    return flattened(_mapping(path), sections, path)


def flattened(given: Mapping[Any, object], sections: frozenset[str], path: Path | str) -> dict[str, object]:
    """Values by key. A mapping under `name:` gives keys `name.key`. `-` and `_` in keys are the same.

    `sections`: the names whose value must be a mapping. `path`: where they stand, for messages. Raises ConfigError.
    """
    values: dict[str, object] = {}
    for name, value in given.items():
        key = str(name).replace("-", "_")
        if isinstance(value, dict):
            found = {f"{key}.{str(inner).replace('-', '_')}": setting for inner, setting in value.items()}
        elif key in sections:
            what = "is empty" if value is None else "is no mapping"
            raise ConfigError(f"{key} in {path} {what}: give its settings on indented lines below it, or leave it out")
        else:
            found = {key: value}
        if twice := values.keys() & found.keys():
            raise ConfigError(f"{min(twice)} in {path} is set twice")
        values |= found
    return values


def _mapping(path: Path) -> dict[object, object]:
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_without_quotes(error)}") from None
    except RecursionError:
        raise ConfigError(f"{path} is not valid YAML: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # not UTF-8, control characters, an invalid date or number
        raise ConfigError(f"{path} is not valid YAML ({type(error).__name__})") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, not a {type(document).__name__}")
    return document


def _without_quotes(error: yaml.MarkedYAMLError) -> str:
    """The problem and its line and column, without text of the file."""
    mark = error.problem_mark or error.context_mark
    problem = _QUOTED.sub(
        lambda quoted: "…" if quoted["of_file"] else quoted[0], error.problem or error.context or type(error).__name__
    )
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else problem
