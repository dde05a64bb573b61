"""Ranges and names, as they are declared with the parameters (`engine.core.params`)."""

from collections.abc import Collection, Iterable
from dataclasses import fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from engine.core.errors import InvalidRequest
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.ranges import Ge, Gt, Le, Lt

Bound = Ge | Gt | Le | Lt
Params = SamplingParams | DiffusionParams


def check_ranges(params: Params, prefix: str) -> None:
    """Raises InvalidRequest if a field is outside its bounds. `prefix` stands before its name there."""
    for name, bounds in _RANGES[type(params)].items():
        value = getattr(params, name)
        for each in bounds:
            # Each comparison is written so that NaN fails it.
            match each:
                case Ge(bound):
                    fits, words = value is None or value >= bound, f"at least {bound}"
                case Gt(bound):
                    fits, words = value is None or value > bound, f"greater than {bound}"
                case Le(bound):
                    fits, words = value is None or value <= bound, f"at most {bound}"
                case Lt(bound):
                    fits, words = value is None or value < bound, f"less than {bound}"
            if not fits:
                raise InvalidRequest(f"{prefix}{name} is {value}; it must be {words}.", f"{prefix}{name}")


def check_choices(params: Params, prefix: str) -> None:
    """Raises InvalidRequest if a field has none of the values that its Literal names."""
    for name, choices in _CHOICES[type(params)].items():
        check_name(f"{prefix}{name}", getattr(params, name), choices)


def check_name(param: str, name: str, known: Collection[str]) -> None:
    """Raises InvalidRequest, which names `param`, if the name is unknown."""
    if name not in known:
        raise InvalidRequest(f"{param} is {name!r}; it must be one of {', '.join(known)}.", param)


def _ranges(params: type) -> dict[str, tuple[Bound, ...]]:
    """Field -> its bounds, from the annotations."""
    hints = get_type_hints(params, include_extras=True)
    return {field.name: tuple(_bounds(hints[field.name])) for field in fields(params)}


def _bounds(hint: Any) -> Iterable[Bound]:
    for part in (hint, *get_args(hint)):  # `Annotated[int, …] | None` has its bounds one level down
        if get_origin(part) is Annotated:
            yield from (extra for extra in part.__metadata__ if isinstance(extra, Bound))


def _choices(params: type) -> dict[str, tuple[str, ...]]:
    """Field -> the values it may have, where its type is a Literal."""
    return {name: get_args(hint) for name, hint in get_type_hints(params).items() if get_origin(hint) is Literal}


_RANGES: dict[type, dict[str, tuple[Bound, ...]]] = {params: _ranges(params) for params in get_args(Params)}
_CHOICES: dict[type, dict[str, tuple[str, ...]]] = {params: _choices(params) for params in get_args(Params)}
