"""Loads settings from one YAML file, then `UNMASK_*` variables, then flags; the later source wins.

Each source is a flat table of keys (`port`, `diffusion.cache`). It knows how its user writes a key, so that an error
message names what to change. An unknown key is an error, never ignored.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from engine import ConfigError
from server.arguments import Parser, hint
from server.settings import environment
from server.settings import file as settings_file
from server.settings.tree import BadSetting, Option, Settings, build, options, split

_PRECEDENCE = """\
Every option can also stand in the YAML file under its own name (`max_model_len: 4096`; `diffusion:` is a mapping) and
in the environment (UNMASK_MAX_MODEL_LEN=4096, UNMASK_DIFFUSION__CACHE=dual). A flag outranks the environment, which
outranks the file."""


@dataclass(frozen=True, slots=True)
class Source:
    """Values by key, and how the user of this source writes a key."""

    values: Mapping[str, object]
    spell: Callable[[str], str]

    def refuse_unknown(self, known: Iterable[str]) -> None:
        known = list(known)
        for key in self.values:
            if key not in known:
                raise ConfigError(f"{self.spell(key)} is not a setting{hint(key, known, self.spell)}")


def load_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Settings from flags, environment and the file that `--config` names. Raises ConfigError. `--help` exits."""
    flags = _parse(argv)
    file = flags.pop("config", None)
    sources = [from_file(Path(str(file)))] if file else []
    return _merged([*sources, from_environment(environ), Source(flags, _as_flag)])


def from_mapping(given: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """Settings from the environment and from what another program has read as it reads YAML. Raises ConfigError."""
    values = settings_file.flattened(given, _sections(), "the arguments")
    return _merged([from_environment(environ), Source(values, lambda key: f"{key} in the arguments")])


def _merged(sources: Sequence[Source]) -> Settings:
    """Settings of all sources, the last of which outranks the others. Raises ConfigError."""
    known = options()
    for source in sources:
        source.refuse_unknown(known)
    values = {key: value for source in sources for key, value in source.values.items()}
    try:
        return with_key_file(build(values))
    except BadSetting as error:
        origin = next(source for source in reversed(sources) if error.key in source.values)
        shown = "" if known[error.key].is_secret else f", not {values[error.key]!r:.200}"
        raise ConfigError(f"{origin.spell(error.key)} {error}{shown}") from None


def with_key_file(settings: Settings) -> Settings:
    """The settings with the keys of `api_key_file` added to those of `api_key`, all checked.

    Raises BadSetting for invalid keys, and for a file that cannot be read or has none: a server that should need keys
    must not start without.
    """
    keys, path = [key.get_secret_value() for key in settings.server.api_key], settings.server.api_key_file
    _check_keys("api_key", keys)
    if path is not None:
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise BadSetting("api_key_file", f"cannot be read ({type(error).__name__})") from None
        from_file = [line.strip() for line in lines if line.strip()]
        if not from_file:
            raise BadSetting("api_key_file", "holds no key")
        _check_keys("api_key_file", from_file)
        keys += from_file
    return replace(settings, server=replace(settings.server, api_key=tuple(map(SecretStr, keys))))


def _check_keys(setting: str, keys: Iterable[str]) -> None:
    if not all(key and all("!" <= letter <= "~" for letter in key) for key in keys):
        raise BadSetting(setting, "must hold keys of visible ASCII without blanks")


def from_file(path: Path) -> Source:
    """The source for a YAML file. Raises ConfigError."""
    return Source(settings_file.read(path, _sections()), lambda key: f"{key} in {path}")


def _sections() -> frozenset[str]:
    """The names that stand for a mapping of settings."""
    return frozenset(key.partition(".")[0] for key in options() if "." in key)


def from_environment(environ: Mapping[str, str]) -> Source:
    """The source for variables that start with UNMASK_, except those that Kubernetes makes for Services."""
    return Source(environment.settings_of(environ), environment.spell)


def _parse(argv: Sequence[str]) -> dict[str, object]:
    """The values of the given flags, by key. They stay strings until `build` reads them. Raises ConfigError."""
    parser = Parser(
        prog="unmask serve",
        usage="unmask serve [MODEL] [--config FILE] [OPTION ...]",
        description="Serve a diffusion language model behind the OpenAI API.",
        epilog=_PRECEDENCE,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    table = options()
    parser.add_argument("model", nargs="?", metavar="MODEL", help=_help(table["model"]))
    parser.add_argument("--config", metavar="FILE", help="A YAML file of settings.")
    add_dry_run(parser)  # `server.commands.dry_run` has removed these before; they are here for `--help` and for hints
    titles = {"engine": "model and engine", "server": "server", "diffusion": "defaults of the request's `diffusion`"}
    titles["ray"] = "replicas on a Ray cluster"
    groups = {section: parser.add_argument_group(title) for section, title in titles.items()}
    for option in table.values():
        if option.key != "model":
            groups[option.section].add_argument(
                _as_flag(option.key), dest=option.key, help=_help(option), **_form(option)
            )
    argv = [dashed(argument) for argument in argv]
    flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]  # noqa: SLF001 - no public list
    for argument in argv:
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in flags and name != "--":
            raise ConfigError(f"{name} is not a flag{hint(name, flags)}")
    given, rest = parser.parse_known_args(argv)
    if rest and rest[0].startswith("-"):
        raise ConfigError(f"{rest[0]} is not a flag")
    if rest:
        lists = [_as_flag(option.key) for option in table.values() if option.is_list and option.key in given]
        # An extra argument after a list may be an API key, which must not be shown.
        cure = f"give {lists[0]} again for each entry, or put commas between" if lists else f"{rest[0]} is too many"
        raise ConfigError(f"there is one MODEL at most: {cure}")
    return vars(given)


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Declares the flags that are no settings."""
    parser.add_argument("--dry-run", action="store_true", help="Print what the model would take in memory, and exit.")
    parser.add_argument("--memory", metavar="GIB", help="With --dry-run: of the device; else common sizes are shown.")


def _form(option: Option) -> dict[str, Any]:
    """How argparse reads the option: `--docs` and `--no-docs`; `--api-key A --api-key B` or `--api-key A,B`.

    No flag takes several arguments, because the last one could be meant as MODEL.
    """
    if option.type is bool:
        return {"action": argparse.BooleanOptionalAction}
    metavar = "{" + ",".join(option.choices) + "}" if option.choices else option.name.split("_")[-1].upper()
    return {"metavar": metavar} | ({"action": "extend", "type": split} if option.is_list else {})


def _help(option: Option) -> str:
    default = "" if option.default in (None, (), False) else f" [default: {option.default}]"
    form = " A list: give it again for each, or put commas between." if option.is_list else ""
    return (option.doc + form + default).replace("%", "%%")


def _as_flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def dashed(argument: str) -> str:
    """`--max_model_len=8` as `--max-model-len=8`. Values are not changed."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument
