"""Tools: calls of two small functions in Hermes form, and answers from what they return."""

import json
from collections.abc import Callable
from random import Random

from engine.demo.families.basics import OUT_OF_RANGE, facts, reverse, sort, sum_
from engine.demo.families.problem import Problem, Turn, written_calls
from engine.demo.families.talk import HONEST, greet
from engine.demo.families.words import CITIES, WEATHER

_ADD_TEXTS = ("Add two numbers.", "Adds two integers.", "The sum of two numbers.", "Add a and b", "")
_WEATHER_TEXTS = (
    "Get the weather in a city.",
    "The weather in a city today.",
    "Get current weather",
    "Weather of a city",
    "",
)
_ADD = ("What is {a} plus {b}?", "Add {a} and {b}.", "How much is {a} + {b}?", "What is the sum of {a} and {b}?",
        "Please add {a} and {b}.", "What is {a} + {b}?", "Can you add {a} and {b}?", "Use the tool to add {a} and {b}.",
        "{a} + {b}", "I have {a} and {b}. What is that together?")  # fmt: skip
_WEATHER = ("What is the weather in {}?", "How is the weather in {}?", "What's the weather like in {}?",
            "Tell me the weather in {}.", "What is the weather in {} today?", "Is it warm in {}?", "Weather in {}?",
            "I am in {}. How is the weather?", "Do I need an umbrella in {}?")  # fmt: skip
_BOTH = ("What is the weather in {} and in {}?", "Tell me the weather in {} and in {}.",
         "How is the weather in {} and {}?", "Weather in {} and {}?")  # fmt: skip


def tool(rng: Random) -> Problem:
    """A call, an answer from a tool's result, or an answer that needs no tool."""
    tools = rng.choice([("add", "weather"), ("weather", "add"), ("add", "weather"), ("add",), ("weather",)])
    kind = rng.choices(["call", "result", "no tool"], [50, 35, 15])[0]
    if kind == "no tool":
        return _without(rng, tools)
    asks = _both if "weather" in tools and rng.random() < 0.12 else _KINDS[rng.choice(tools)]
    asked, calls, results, answer = asks(rng)
    written = tuple(_described(rng, name) for name in tools)
    if kind == "call":
        return Problem(task="tool", prompt=asked, answer=written_calls(calls), tools=written)
    *earlier, last = results
    turns = (
        Turn("user", asked),
        Turn("assistant", written_calls(calls)),
        *(Turn("tool", result) for result in earlier),
    )
    return Problem(task="tool", prompt=last, answer=answer, before=turns, role="tool", tools=written)


_Asked = tuple[str, list[tuple[str, dict[str, object]]], list[str], str]
"""What is asked, the calls (name, arguments), what they return, and the answer then."""


def _add(rng: Random) -> _Asked:
    digits = rng.choice([49, 49, 49, 499])
    a, b = rng.randint(1, digits), rng.randint(1, digits)
    result = rng.choice([str(a + b), json.dumps({"result": a + b}), json.dumps({"sum": a + b})])
    return rng.choice(_ADD).format(a=a, b=b), [("add", {"a": a, "b": b})], [result], f"The answer is {a + b}."


def _weather(rng: Random) -> _Asked:
    city, (result, answer) = rng.choice(CITIES), _sky(rng)
    return rng.choice(_WEATHER).format(city), [("weather", {"city": city})], [result], f"It is {answer} in {city}."


def _both(rng: Random) -> _Asked:
    """Two cities: two calls, and one sentence for both."""
    (one, two), (first, is_first), (second, is_second) = rng.sample(CITIES, 2), _sky(rng), _sky(rng)
    calls: list[tuple[str, dict[str, object]]] = [("weather", {"city": one}), ("weather", {"city": two})]
    answer = f"It is {is_first} in {one} and {is_second} in {two}."
    return rng.choice(_BOTH).format(one, two), calls, [first, second], answer


def _sky(rng: Random) -> tuple[str, str]:
    """What the tool returns, and the word in it."""
    sky, degrees = rng.choice(WEATHER), rng.randint(1, 35)
    returned = (
        sky,
        json.dumps({"weather": sky}),
        json.dumps({"weather": sky, "degrees": degrees}),
        f"{sky}, {degrees} degrees",
    )
    return rng.choice(returned), sky


_KINDS: dict[str, Callable[[Random], _Asked]] = {"add": _add, "weather": _weather}


def _without(rng: Random, tools: tuple[str, ...]) -> Problem:
    """What the model answers itself, or says that it cannot, though it has tools."""
    plain = rng.choice([facts, sort, reverse, greet] + ([sum_] if "add" not in tools else []))(rng)
    prompt, answer = plain.prompt, plain.answer
    if len(tools) == 1 and rng.random() < 0.35:
        if tools == ("add",):
            prompt, answer = rng.choice(_WEATHER).format(rng.choice(CITIES)), HONEST
        else:
            prompt, answer = rng.choice(_ADD).format(a=rng.randint(21, 99), b=rng.randint(21, 99)), OUT_OF_RANGE
    return Problem(task="tool", prompt=prompt, answer=answer, tools=tuple(_described(rng, name) for name in tools))


def _described(rng: Random, name: str) -> str:
    """The function as an entry of OpenAI's `tools`."""
    properties = {"a": {"type": "integer"}, "b": {"type": "integer"}} if name == "add" else {"city": {"type": "string"}}
    description = rng.choice(_ADD_TEXTS if name == "add" else _WEATHER_TEXTS)
    function: dict[str, object] = {"name": name}
    if description:
        function["description"] = description
    function["parameters"] = {"type": "object", "properties": properties, "required": list(properties)}
    return json.dumps({"type": "function", "function": function})
