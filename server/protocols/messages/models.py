"""The names of the served model in the form of Anthropic's API: one, or a page of them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams

from engine import InvalidRequest
from server.schemas import ModelCard

Lifecycle = Literal["active", "deprecated", "retired"]


class AnthropicModel(BaseModel):
    """One name of the served model."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    """The id again: a name has no other."""
    created_at: datetime
    """When the server started."""
    lifecycle: Lifecycle = "active"
    max_input_tokens: int
    """Longest prompt and answer together, in tokens."""
    max_tokens: int
    """The same: more may be asked for, and is cut."""
    capabilities: None = None
    """Not told."""
    deprecated_at: None = None
    line: None = None
    retires_at: None = None


class AnthropicModels(BaseModel):
    """A page of the names."""

    data: list[AnthropicModel]
    has_more: bool
    """Whether there are names behind this page, or before it where `before_id` was asked for."""
    first_id: str | None
    last_id: str | None


class _Asked(BaseModel):
    """Which page. The values come from a query, as texts."""

    model_config = ConfigDict(frozen=True)

    after_id: str | None = None
    before_id: str | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 20
    lifecycle: tuple[Lifecycle, ...] = ("active", "deprecated")


def as_model(card: ModelCard) -> AnthropicModel:
    """The card in this form."""
    return AnthropicModel(
        id=card.id,
        display_name=card.id,
        created_at=datetime.fromtimestamp(card.created, UTC),
        max_input_tokens=card.max_model_len,
        max_tokens=card.max_model_len,
    )


def page_of(cards: Sequence[ModelCard], query: QueryParams) -> AnthropicModels:
    """The page of the cards that the query asks for.

    Raises RequestValidationError for a bad value, and InvalidRequest for a cursor that is no name in the list.
    """
    asked = _asked(query)
    models = [as_model(card) for card in cards if "active" in asked.lifecycle]
    if asked.before_id is not None:
        if asked.after_id is not None:
            raise InvalidRequest("`after_id` and `before_id` both say where the page is; leave one out.", "before_id")
        end = _place(models, asked.before_id, "before_id")
        begin = max(0, end - asked.limit)
        has_more = begin > 0
    else:
        begin = 0 if asked.after_id is None else _place(models, asked.after_id, "after_id") + 1
        end = begin + asked.limit
        has_more = end < len(models)
    page = models[begin:end]
    first_id, last_id = (page[0].id, page[-1].id) if page else (None, None)
    return AnthropicModels(data=page, has_more=has_more, first_id=first_id, last_id=last_id)


def _asked(query: QueryParams) -> _Asked:
    """Lists have brackets behind their names, as Anthropic's SDKs write them, or are a name again and again."""
    given: dict[str, Any] = {name: query[name] for name in ("after_id", "before_id", "limit") if name in query}
    stages = query.getlist("lifecycle[]") + query.getlist("lifecycle")
    try:
        return _Asked.model_validate({**given, "lifecycle": stages} if stages else given)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _place(models: Sequence[AnthropicModel], id_: str, name: str) -> int:
    places = [index for index, model in enumerate(models) if model.id == id_]
    if not places:
        raise InvalidRequest(f"`{name}`: no model in the list has this id.", name)
    return places[0]
