"""The wire types of tools: what a request may say of them, and the calls in an answer."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, PlainValidator
from pydantic_core import PydanticCustomError

from server.schemas.wire import IfGiven, Text, WireRequest, check_json

MAX_TOOLS = 128

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]


def _check_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """What is wrong with the schema itself is for the compiler to say."""
    check_json(parameters)
    if parameters.get("type", "object") not in ("object", ["object"]):
        raise PydanticCustomError("parameters", "must be the JSON Schema of an object: `type` is `object`")
    return parameters


Parameters = Annotated[dict[str, Any], AfterValidator(_check_parameters)]


class Function(WireRequest):
    """A function that the model may call."""

    name: FunctionName
    """1 to 128 of the letters a-z and A-Z, digits, `_` and `-`."""
    description: Text | None = None
    """What it does, for the model."""
    parameters: Parameters = Field(default_factory=dict)
    """The JSON Schema of its arguments; absent or empty is a function without any."""
    strict: bool | None = None
    """Accepted, and without effect: arguments are always valid."""


class Tool(WireRequest):
    """A tool. There are functions alone."""

    type: Literal["function"]
    function: Function

    @property
    def for_template(self) -> dict[str, Any]:
        """As templates expect it."""
        told = {"name": self.function.name, "description": self.function.description}
        parameters = self.function.parameters or {"type": "object", "properties": {}}
        return {
            "type": "function",
            "function": {**{key: value for key, value in told.items() if value is not None}, "parameters": parameters},
        }


class OtherTool(WireRequest):
    """A tool that is no function of the client's: the model does not see it."""

    type: Text


_Function = TypeVar("_Function", bound=WireRequest)


def function_or_other(function: type[_Function], kind: str) -> Callable[[Any], _Function | OtherTool]:
    """A check that takes tools of any `type`. `kind`: the one of functions, and of tools without a `type`."""

    def read(value: Any) -> _Function | OtherTool:
        match value:
            case {"type": str(other)} if other != kind:
                return OtherTool.model_validate({"type": other})
        return function.model_validate(value)

    return read


def _check_names(tools: list[Tool]) -> list[Tool]:
    names = [tool.function.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise PydanticCustomError("tools", "must not hold two functions of the name `{name}`", {"name": name})
    return tools


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS), AfterValidator(_check_names)]


class NamedFunction(WireRequest):
    """A function, which must be one of `tools`."""

    name: str


class NamedTool(WireRequest):
    """The one tool that is called, once."""

    type: Literal["function"]
    function: NamedFunction


class AllowedFunctions(WireRequest):
    """Which tools may be called, and whether one has to be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(max_length=MAX_TOOLS)]

    @property
    def names(self) -> set[str]:
        """Of the functions."""
        return {tool.function.name for tool in self.tools}


class AllowedTools(WireRequest):
    """Those of `tools` that may be called, each as the one that is named."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedFunctions


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedTools


def _read_choice(value: Any) -> ToolChoice:
    """By hand, since a union would report what is wrong once for each branch."""
    match value:
        case "none" | "auto" | "required":
            return value  # type: ignore[no-any-return]
        case {"type": "function", "function": {"name": str()}}:
            return NamedTool.model_validate(value)
        case {"type": "allowed_tools"}:
            return AllowedTools.model_validate(value)
    form = '{"type": "function", "function": {"name": "..."}}'
    raise PydanticCustomError("tool_choice", f"must be `none`, `auto`, `required`, `allowed_tools`, or {form}")


AnyToolChoice = Annotated[ToolChoice, PlainValidator(_read_choice, json_schema_input_type=ToolChoice)]


def check_choice(choice: ToolChoice | None, tools: Sequence[Tool]) -> None:
    """Raises PydanticCustomError for a choice that needs a tool that is not there."""
    named: set[str] = set()
    match choice:
        case "required" if not tools:
            raise PydanticCustomError("tool_choice", "is `required`, but there are no `tools`")
        case NamedTool(function=function):
            named = {function.name}
        case AllowedTools(allowed_tools=allowed):
            if allowed.mode == "required" and not allowed.tools:
                raise PydanticCustomError("tool_choice", "requires a call, but allows no function")
            named = allowed.names
    if not named <= {tool.function.name for tool in tools}:
        raise PydanticCustomError("tool_choice", "names a function that is none of `tools`")


class CalledFunction(BaseModel):
    """What the model called."""

    name: str
    arguments: str
    """The JSON text of an object."""


class CalledTool(BaseModel):
    """A call within an answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class FunctionDelta(BaseModel):
    """What a chunk adds to a call: its name, which comes once and first, or more of the arguments."""

    name: IfGiven[str] = None
    arguments: str


class CalledToolDelta(BaseModel):
    """What a chunk adds to a call; `id`, `type` and name are in a call's first one."""

    index: int
    """Number of the call in its answer."""
    id: IfGiven[str] = None
    type: IfGiven[Literal["function"]] = None
    function: FunctionDelta
