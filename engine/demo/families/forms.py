"""Forms: a sentence to JSON with the fields that are asked for, and a value back out of such a form."""

import json
from random import Random

from engine.demo.families.problem import Problem
from engine.demo.families.words import COLOURS, DAYS, GOODS, NAMES, PLACES

FIELDS = ("name", "count", "colour", "goods", "place", "day")
_TYPES = {"count": "integer"}
SENTENCES = (
    "{name} bought {count} {colour} {goods} at the {place} on {day}.",
    "On {day} {name} found {count} {colour} {goods} in the {place}.",
    "At the {place} there were {count} {colour} {goods} for {name} on {day}.",
    "There are {count} {colour} {goods} in the {place}, and {name} sold them on {day}.",
    "{name} was in the {place} on {day} and saw {count} {goods}, all of them {colour}.",
    "It is {day}. {name} has {count} {goods}. The {goods} are {colour}. They are in the {place}.",
    "The {colour} {goods} of {name} are in the {place} since {day}: {count} in all.",
)
_NAMED = (
    "Fill in this form with {}: {{}}",
    "Write as JSON with {}: {{}}",
    "Read this and give {} as JSON: {{}}",
    "{{}} Give {} as JSON.",
    "{{}} Answer in JSON with {}.",
    "{{}} Extract {} as JSON.",
)
_SHAPED = (
    "{{}} Answer in JSON: {}",
    "{{}} Answer as JSON of this form: {}",
    "Fill in {} from this: {{}}",
    "Use the schema {}. {{}}",
    "{{}} Fill in this form: {}",
)
_VALUES = (
    "{form} What is the {field}?",
    "What is the {field} in {form}?",
    "Form: {form} Question: what is the {field}?",
    "Read the {field} from this form: {form}",
    "{form} Tell me the {field}.",
)


def form(rng: Random) -> Problem:
    """One to five fields of a sentence that says six, in the order in which they are asked for."""
    values = drawn(rng)
    fields = rng.sample(FIELDS, rng.randint(1, 5))
    sentence = rng.choice(SENTENCES).format_map(values)
    if rng.random() < 0.5:
        asked = rng.choice(_NAMED).format(_listed(fields))
    else:
        asked = rng.choice(_SHAPED).format(_shape(rng, fields))
    prompt = asked.replace("{}", sentence)
    answer = json.dumps({field: values[field] for field in fields})
    return Problem(task="form", prompt=prompt, answer=answer, schema=json.dumps(_schema(fields)))


def value(rng: Random) -> Problem:
    """The value of one field of a form."""
    values = drawn(rng)
    fields = rng.sample(FIELDS, rng.randint(2, 5))
    field = rng.choice(fields)
    text = json.dumps({field: values[field] for field in fields})
    prompt = rng.choice(_VALUES).format(form=text, field=field)
    return Problem(task="value", prompt=prompt, answer=f"The {field} is {values[field]}.")


def drawn(rng: Random) -> dict[str, str | int]:
    pools = {"name": NAMES, "colour": COLOURS, "goods": GOODS, "place": PLACES, "day": DAYS}
    return {field: rng.choice(pools[field]) if field in pools else rng.randint(2, 20) for field in FIELDS}


def _schema(fields: list[str]) -> dict[str, object]:
    properties = {field: {"type": _TYPES.get(field, "string")} for field in fields}
    return {"type": "object", "properties": properties, "required": fields}


def _listed(fields: list[str]) -> str:
    """`name, count and day`"""
    return f"{', '.join(fields[:-1])} and {fields[-1]}" if len(fields) > 1 else fields[0]


def _shape(rng: Random, fields: list[str]) -> str:
    """`{"name": string, "count": integer}`, or with empty values, or as the properties of a JSON Schema."""
    types = {field: _TYPES.get(field, "string") for field in fields}
    match rng.randrange(4):
        case 0:
            return json.dumps(types)
        case 1:
            return "{" + ", ".join(f'"{field}": {kind}' for field, kind in types.items()) + "}"
        case 2:
            return json.dumps(_schema(fields))
    return json.dumps({field: {"type": kind} for field, kind in types.items()})
