"""What a checkpoint's `config.json` may say: declarations that families share, and one-line error messages.

A family declares keys, types and ranges; a config that passes can be computed with, and no later code checks it again.
Knows no family, and only the contents of files.
"""

import reprlib
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le, Len
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from engine.core.config import ModelSpec
from engine.core.errors import LoadError
from engine.models.layers import TransformerConfig

Layers = Annotated[int, Ge(1), Le(256)]
Heads = Annotated[int, Ge(1), Le(4096)]
Width = Annotated[int, Ge(1), Le(2**20)]
"""Numbers of a hidden row, or of a row within an MLP."""
Vocabulary = Annotated[int, Ge(2), Le(2**24)]
Positions = Annotated[int, Ge(1), Le(2**21)]
"""Each position has a row in the rotary table."""
TokenId = Annotated[int, Ge(0)]
Epsilon = Annotated[float, Ge(0), Le(1)]
Theta = Annotated[float, Gt(0)]

Declared = TypeVar("Declared", bound="Declaration")


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class Declaration(BaseModel):
    """Part of a checkpoint's JSON. Keys that are not declared are ignored: published files have dozens."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    @classmethod
    def read(cls: type[Declared], values: Mapping[str, Any], source: Path | str = "config.json") -> Declared:
        """Validates values. Raises LoadError, in one line with the key's name, on a missing or invalid one."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise LoadError(f"{source}{_complaint(error)}") from None


class ConfigFile(Declaration):
    """What all families' `config.json` have."""

    eos_token_id: Annotated[list[TokenId], Len(1), BeforeValidator(_listed)]
    """One or several, as in transformers."""
    mask_token_id: TokenId

    @property
    @abstractmethod
    def geometry(self) -> TransformerConfig:
        """The sizes of the transformer."""

    @abstractmethod
    def spec(self, special_tokens: Mapping[str, int]) -> ModelSpec:
        """`special_tokens` are the tokenizer's, text -> id: some tokens that end answers are listed only there."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "ConfigFile":
        geometry = self.geometry
        if geometry.num_heads % geometry.num_kv_heads:
            raise _contradiction(f"{geometry.num_heads} heads cannot share {geometry.num_kv_heads} of keys and values")
        if geometry.head_dim < 2 or geometry.head_dim % 2:
            raise _contradiction(f"heads have {geometry.head_dim} numbers; rotation needs an even number of them")
        return self


def divided(width: int, heads: int) -> int:
    """Numbers of one head. Only for use in declarations, where `Declaration.read` turns its error into LoadError."""
    if width % heads:
        raise _contradiction(f"{heads} heads cannot share a row of {width} numbers")
    return width // heads


def _contradiction(text: str) -> PydanticCustomError:
    return PydanticCustomError("contradiction", "{text}", {"text": text})


def _complaint(error: ValidationError) -> str:
    """The first error, as text that follows a file's name."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f" lacks {key!r}"
    if not key or first["type"] == "contradiction":
        return f": {first['msg']}"
    return f": {key} is {reprlib.repr(first['input'])}; {first['msg'].replace('Input', 'it', 1)}"
