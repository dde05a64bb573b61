"""What a user may set: the frozen tree `Settings`, and `options()`, the same as a flat table of documented keys.

A field of a section is a setting as soon as it exists, under its own name (`port`) or its section's prefix
(`diffusion.cache`); the string below it is its help text. Knows types and ranges, not where values come from
(`server/sources.py`).
"""

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, Field, SecretStr, TypeAdapter, ValidationError

from engine import BUNDLED, CACHES, UNMASKS, DiffusionParams, EngineConfig
from server.settings.origin import origin
from server.settings.ray import RayConfig

DEMO = "demo"
"""The name under which settings know the bundled model."""

NULL = "null"
"""How flags and environment write what YAML writes so, for settings that may be nothing."""

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Origin = Annotated[str, AfterValidator(origin)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Everything about HTTP, and the defaults of requests that no engine needs to know."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every interface."""
    port: Port = 8000
    """Port to listen on; 0 takes a free one."""
    served_model_name: tuple[str, ...] = ()
    """Names that requests may give as `model`, the first being the one in answers; without any, the model's own."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Of requests that name none. LLaDA's published default is 0, where OpenAI's is 1."""
    default_max_tokens: Annotated[int, Field(ge=1)] = 256
    """Tokens of a chat answer whose request names none, if the context holds as many."""
    api_key: tuple[SecretStr, ...] = ()
    """Keys that clients must send, any one of them, as `Authorization: Bearer KEY` or `x-api-key: KEY`; without any,
    everybody is served."""
    api_key_file: str | None = None
    """A file of further keys, one a line, where neither the process list nor the environment shows them."""
    metrics_need_key: bool = True
    """Guard /metrics by the keys too, where there are any; /health, /ready and /ping are open always."""
    allowed_hosts: tuple[str, ...] = ()
    """Host headers that are answered, as example.org, or * for all; without any, a server on the loopback that has no
    key answers the loopback's names alone, so that no web page can reach it by a name of its own."""
    trusted_proxies: tuple[str, ...] = ("127.0.0.1", "::1")
    """Addresses and networks of proxies that are believed when they say for whom they ask; the log tells it."""
    allowed_origins: tuple[Origin, ...] = ()
    """Web pages that may call the API from a browser, as https://example.org, or * for all; without any, none may."""
    docs: bool = False
    """Serve /docs, a page that loads its scripts from a public CDN; /openapi.json is there always."""
    page: bool = True
    """Serve `/`, a page on which one watches the model decode. It is open like /health and loads nothing from
    elsewhere; what it asks the API for needs a key like any request."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 4 * 1024 * 1024
    """Longest request body; a longer one is answered with 413."""
    max_json_items: Annotated[int, Field(ge=1)] = 262_144
    """Most elements and members that a body may hold, over all its arrays and objects."""
    max_connections: Annotated[int, Field(ge=1)] = 1000
    """Most clients connected at once; one more is answered with 503. Each takes a file descriptor."""
    request_timeout: Seconds = 600.0
    """Seconds after which an unfinished request is given up: 504, or an error event in a stream; 0 is never."""
    read_timeout: Annotated[Seconds, Field(gt=0)] = 60.0
    """Seconds that a client may take to send a request's headers, and as many for its body."""
    keep_alive_timeout: Annotated[Seconds, Field(gt=0)] = 75.0
    """Seconds that a connection may stay open between two requests: longer than a proxy in front keeps it."""
    write_timeout: Annotated[Seconds, Field(gt=0)] = 30.0
    """Seconds that a client may leave an answer unread before it is cut off and its request aborted."""
    shutdown_timeout: Seconds = 30.0
    """Seconds that running requests get to finish after SIGTERM or Ctrl-C."""
    stuck_after: Annotated[Seconds, Field(gt=0)] = 60.0
    """Seconds without a sign of life from the engine after which /health answers 503."""
    structured: bool = True
    """Take requests that say what their answer must be: `response_format`, `structured_outputs`, tools."""
    structured_cache_mb: Annotated[int, Field(ge=0)] = 256
    """Megabytes of compiled constraints that are kept for later requests."""
    json_whitespace: Literal["flexible", "compact", "spaced"] = "flexible"
    """Space behind the commas and colons of JSON answers: one or none, as the model likes; none; or one."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe messages that are logged."""
    log_format: Literal["text", "json"] = "text"
    """Lines for people or for machines."""
    log_prompts: bool = False
    """Log each request's prompt too; without it no line shows what anybody asked."""
    metrics_compat: Literal["none", "vllm"] = "none"
    """Beside its own metrics, /metrics shows these under another server's names, for dashboards made for that."""
    otlp_endpoint: str | None = None
    """Send a trace of each request to this OpenTelemetry collector (http://host:4318); needs `unmask[otel]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One running server's settings."""

    engine: EngineConfig
    server: ServerConfig
    diffusion: DiffusionParams
    """How requests that do not say otherwise are decoded."""
    ray: RayConfig = field(default_factory=RayConfig)

    @property
    def own_name(self) -> str:
        """What the model is called where it comes from: a hub id, or the name of a folder, but not where that is."""
        folder = Path(self.engine.model)
        return folder.resolve().name if folder.is_dir() else self.engine.model

    @property
    def model_names(self) -> tuple[str, ...]:
        """The ids under which the model is served, each once, the default one first."""
        return tuple(dict.fromkeys(self.server.served_model_name)) or (self.own_name,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One key that a user may set."""

    key: str
    """As YAML spells it; a dot follows a section's prefix."""
    section: str
    """The attribute of `Settings` that holds it."""
    name: str
    """The attribute of the section that holds it."""
    doc: str
    type: Any
    default: object
    choices: tuple[str, ...]
    """All values it can have, or empty where they are not a list."""

    @property
    def is_nullable(self) -> bool:
        return NoneType in get_args(self.type)

    @property
    def is_list(self) -> bool:
        return get_origin(self.type) is tuple

    @property
    def is_secret(self) -> bool:
        """Whether its values must not be shown."""
        return SecretStr in get_args(self.type)


class BadSetting(Exception):
    """The value of `key` cannot be used."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


_SECTIONS: Mapping[str, tuple[str, type]] = {
    "engine": ("", EngineConfig),
    "server": ("", ServerConfig),
    "ray": ("", RayConfig),
    "diffusion": ("diffusion.", DiffusionParams),
}
_CHOICES = {"diffusion.cache": ("auto", *CACHES), "diffusion.unmask": tuple(UNMASKS)}
_DEFAULTS = {"model": DEMO}


@cache
def options() -> Mapping[str, Option]:
    """Every key that a user may set, in the order of the sections. Computed once: it reads source code."""
    table = {}
    for section, (prefix, cls) in _SECTIONS.items():
        docs, types = _field_docs(cls), get_type_hints(cls)
        for given in fields(cls):
            key, annotation = prefix + given.name, types[given.name]
            table[key] = Option(
                key=key,
                section=section,
                name=given.name,
                doc=docs[given.name],
                type=annotation,
                default=_DEFAULTS.get(key) if given.default is MISSING else given.default,
                choices=_CHOICES.get(key, get_args(annotation) if get_origin(annotation) is Literal else ()),
            )
    return MappingProxyType(table)


def build(values: Mapping[str, object]) -> Settings:
    """Settings from values by key; what is absent keeps its default.

    Raises BadSetting, or ConfigError where a combination or the engine objects.
    """
    table = options()
    sections: dict[str, dict[str, object]] = {section: {} for section in _SECTIONS}
    for key, value in {**_DEFAULTS, **values}.items():
        option = table[key]
        if option.choices and value not in option.choices:
            raise BadSetting(key, f"must be one of {', '.join(option.choices)}")
        if value == NULL and option.is_nullable:
            value = None
        if isinstance(value, bool):  # YAML's `yes`, which would pass for the number 1
            _read(option.type, value, option.key, strict=True)
        sections[option.section][option.name] = _entries(key, value) if option.is_list else value
    model = sections["engine"]["model"]
    if isinstance(model, str):
        sections["engine"]["model"] = BUNDLED.get(model, model)
    return Settings(**{name: _section(name, given) for name, given in sections.items()})


def split(text: str) -> list[str]:
    """The entries of a list that is given as one text: what stands between commas. One at its end is no entry's."""
    return text.strip().removesuffix(",").split(",")


def _entries(key: str, value: object) -> list[str]:
    """The entries of a list setting, without the blanks round them."""
    entries = split(value) if isinstance(value, str) else value
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, str) for entry in entries):
        raise BadSetting(key, "should be a text or a list of texts, in quotes where one looks like a number")
    entries = [entry.strip() for entry in entries]
    if "" in entries:
        raise BadSetting(key, "holds an empty entry")
    if any(entry[0] == entry[-1] and entry[0] in "'\"" for entry in entries):
        raise BadSetting(key, "holds quotes that would be part of the value")
    return entries


def _section(name: str, given: Mapping[str, object]) -> Any:
    prefix, cls = _SECTIONS[name]
    return _read(cls, given, prefix)


def _read(type_: Any, value: object, key: str, *, strict: bool = False) -> Any:
    """The value as this type. Raises BadSetting: of a field of a section, whose prefix is then the key."""
    try:
        return _adapter(type_).validate_python(value, strict=strict)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Input ").removeprefix("Value error, ").partition(", unable")[0]
        field = first["loc"][0] if isinstance(value, Mapping) else ""
        raise BadSetting(f"{key}{field}", message) from None


@cache
def _adapter(type_: Any) -> TypeAdapter[Any]:
    """Kept, because to make one of a section takes ten times as long as to read a section with it."""
    return TypeAdapter(type_)


def _field_docs(cls: type) -> dict[str, str]:
    """The string below each field of a dataclass, which Python itself throws away."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for statement, below in pairwise(definition.body):
        match statement, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                docs[name] = " ".join(doc.split())
    return docs
