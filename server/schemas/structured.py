"""The wire types of what an answer must be: OpenAI's `response_format`, and vLLM's fields for the same."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from server.schemas.wire import Text, WireRequest, check_unicode

Choices = list[Text]
_SCHEMA: JsonDict = {"anyOf": [{"type": "object"}, {"type": "boolean"}]}
_SCHEMA_OR_TEXT: JsonDict = {"anyOf": [{"type": "object"}, {"type": "string"}]}
_Label = Annotated[str, Field(max_length=64), AfterValidator(check_unicode)]


class JsonSchemaFormat(WireRequest):
    """A JSON Schema under a name."""

    name: _Label | None = None
    """Accepted, and without effect."""
    description: Text | None = None
    """Accepted, and without effect: the prompt is the client's."""
    schema_: Any = Field(alias="schema", json_schema_extra=_SCHEMA)
    """The schema. Keywords that are not enforced are refused by name."""
    strict: bool = False
    """A schema is always enforced, whatever this says."""


class ResponseFormat(WireRequest):
    """What the whole answer must be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    """Any text, any JSON object, or JSON that fits `json_schema`."""
    json_schema: JsonSchemaFormat | None = None
    """Only with the type of this name."""
    schema_: Any = Field(default=None, alias="schema", json_schema_extra=_SCHEMA)
    """Other servers' place for the schema, with either JSON type."""

    @model_validator(mode="after")
    def _has_its_schema(self) -> "ResponseFormat":
        has_schema = self.schema_ is not None
        if self.type == "json_schema" and self.json_schema is None and not has_schema:
            raise PydanticCustomError("json_schema", "needs `json_schema`")
        if self.json_schema is not None and (self.type != "json_schema" or has_schema):
            raise PydanticCustomError(
                "json_schema", "may have `json_schema` only with this `type`, and no other schema"
            )
        if self.type == "text" and has_schema:
            raise PydanticCustomError("schema", "may have no `schema` with the `type` text")
        return self


class StructuredOutputs(WireRequest):
    """vLLM's form of the same; at most one of the first five says what the answer must be. Others are refused."""

    model_config = ConfigDict(extra="forbid")

    json_: Any = Field(default=None, alias="json", json_schema_extra=_SCHEMA_OR_TEXT)
    """A JSON Schema, or one as a text."""
    json_object: bool = False
    """Any JSON object."""
    regex: Text | None = None
    """The answer is a text that this matches as a whole."""
    choice: Choices | None = None
    """The answer is one of these."""
    grammar: Text | None = None
    """A grammar in EBNF (`root ::= …`) or Lark's form (`start: …`)."""
    disable_any_whitespace: bool = False
    """No space behind commas and colons of JSON."""
    disable_additional_properties: bool = False
    """Accepted: an object with `properties` has no others unless its schema says so."""
    whitespace_pattern: None = None
    """Not supported: only null."""
    structural_tag: None = None
    """Not supported: only null."""


class ConstrainedRequest(WireRequest):
    """What a request may say of the answer's form. One field at most may say something."""

    response_format: ResponseFormat | None = None
    """What the answer must be; its fields are below. It is valid at every temperature, or the request is refused."""
    structured_outputs: StructuredOutputs | None = None
    """The same in vLLM's words; its fields are below."""
    guided_json: Any = Field(default=None, json_schema_extra=_SCHEMA_OR_TEXT)
    """The older name of `structured_outputs.json`."""
    guided_regex: Text = ""
    """The older name of `structured_outputs.regex`."""
    guided_choice: Choices = Field(default_factory=list)
    """The older name of `structured_outputs.choice`."""
    guided_grammar: Text = ""
    """The older name of `structured_outputs.grammar`."""
