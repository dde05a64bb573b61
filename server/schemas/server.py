"""The wire types of answers about the server itself, and of errors."""

from typing import Literal

from pydantic import BaseModel


class ModelCard(BaseModel):
    """One name of the served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "unmask"
    root: str
    """What was loaded: a hub id, or the name of a folder."""
    parent: None = None
    max_model_len: int
    """Longest prompt and answer together, in tokens; vLLM's name."""
    context_length: int
    """The same under OpenRouter's name."""


class ModelList(BaseModel):
    """All names of the served model."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
    models: tuple[()] = ()
    """Empty, and there because Codex reports an error without it. Codex would read entries of a form of its own, which
    changes with its releases, and drops the whole list for one field that is missing."""


class Status(BaseModel):
    """A probe that succeeded."""

    status: str


class VersionResponse(BaseModel):
    """The package that answers."""

    version: str


class LoadResponse(BaseModel):
    """How busy the server is."""

    server_load: int
    """Requests that run or wait; each choice of an answer is one."""


class ErrorObject(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    """The field at fault, as a dotted path."""
    code: str | None


class ErrorResponse(BaseModel):
    """OpenAI's error object."""

    error: ErrorObject
