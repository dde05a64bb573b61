"""The YAML file of settings as a flat table of keys. Knows YAML's traps, no setting.

The file may hold an API key, so no complaint quotes what stands in it, but for the names of keys.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from engine import ConfigError

_QUOTED = re.compile(r"""'(?:\\?.|<[\w ]+>)'|(?P<of_file>(['"]).*\2)""")
"""A single character or one of the parser's own words (`<block end>`); anything else in quotes is of the file."""


class _Loader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys; here they are an error."""

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
    """A key stands twice in a mapping."""

    def __init__(self, name: str, mark: yaml.Mark) -> None:
        super().__init__(problem=f"{name} is set twice", problem_mark=mark)


def read(path: Path, sections: frozenset[str]) -> dict[str, object]:
    """Values by key; a mapping under `name:` gives `name.key`, and `-` and `_` in keys are the same.

    `sections`: the names that must have a mapping. Raises ConfigError.
    """
    values: dict[str, object] = {}
    for name, value in _mapping(path).items():
        key = str(name).replace("-", "_")
        if isinstance(value, dict):
            given = {f"{key}.{str(inner).replace('-', '_')}": setting for inner, setting in value.items()}
        elif key in sections:
            what = "is empty" if value is None else "is no mapping"
            raise ConfigError(f"{key} in {path} {what}: give its settings on indented lines below it, or leave it out")
        else:
            given = {key: value}
        if twice := values.keys() & given.keys():
            raise ConfigError(f"{min(twice)} in {path} is set twice")
        values |= given
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
    except (yaml.YAMLError, ValueError) as error:  # no UTF-8, control characters; a date or a number that is none
        raise ConfigError(f"{path} is not valid YAML ({type(error).__name__})") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, not a {type(document).__name__}")
    return document


def _without_quotes(error: yaml.MarkedYAMLError) -> str:
    """What is wrong and where, without the line."""
    mark = error.problem_mark or error.context_mark
    problem = _QUOTED.sub(
        lambda quoted: "…" if quoted["of_file"] else quoted[0], error.problem or error.context or type(error).__name__
    )
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else problem
