"""Tool calls on the wire: whole, or in pieces."""

from hashlib import sha256

from server.replies.choice import Delta
from server.schemas import CalledFunction, CalledTool, CalledToolDelta, FunctionDelta


def called(answer: str, delta: Delta) -> list[CalledTool]:
    """The calls of a whole choice. `answer`: its id."""
    return [
        CalledTool(
            id=_call_id(answer, delta.index, call.index),
            function=CalledFunction(name=call.name or "", arguments=call.arguments),
        )
        for call in delta.calls
    ]


def call_deltas(answer: str, delta: Delta) -> list[CalledToolDelta]:
    """The same of a chunk: the name in the first piece of a call, then its arguments."""
    return [
        CalledToolDelta(
            index=call.index,
            id=None if call.name is None else _call_id(answer, delta.index, call.index),
            type=None if call.name is None else "function",
            function=FunctionDelta(name=call.name, arguments=call.arguments),
        )
        for call in delta.calls
    ]


def _call_id(answer: str, choice: int, number: int) -> str:
    """The id of a call, which follows from its answer's id and its place in the answer."""
    return f"call_{sha256(f'{answer}:{choice}:{number}'.encode()).hexdigest()[:24]}"
