r"""Tools, calls of them and their results as text, in the form of Hermes, which Qwen and its kin were trained on.

A call is `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`; a result stands in `<tool_response>` in a user's
turn. For chat templates that know no tools; the others write the same themselves. Knows strings, lists and mappings,
as templates receive them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
OPEN_RESULT, CLOSE_RESULT = "<tool_response>", "</tool_response>"
TAGS = (OPEN, CLOSE, OPEN_RESULT, CLOSE_RESULT)
RESULT_ROLE = "tool"

_INSTRUCTIONS = f"""\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{{tools}}
</tools>

For each function call, return a json object with function name and arguments within {OPEN}{CLOSE} XML tags:
{OPEN}
{{{{"name": <function-name>, "arguments": <args-json-object>}}}}
{CLOSE}"""


def as_text(turns: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The turns with tools, calls and results in their contents, so that only plain turns are left.

    `tools` stand at the end of the first turn if it is the system's, else in a system turn before all others. Results
    that follow each other are one turn.
    """
    written = [dict(turn) for group in _groups(turns) for turn in group]
    if not tools:
        return written
    instructions = _INSTRUCTIONS.format(tools="\n".join(map(_json, tools)))
    if written[0]["role"] != "system":
        return [{"role": "system", "content": instructions}, *written]
    content = written[0]["content"]
    return [{**written[0], "content": f"{content}\n\n{instructions}" if content else instructions}, *written[1:]]


def _groups(turns: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    for are_results, group in groupby(turns, key=lambda turn: turn["role"] == RESULT_ROLE):
        if are_results:
            results = [f"{OPEN_RESULT}\n{turn['content']}\n{CLOSE_RESULT}" for turn in group]
            yield [{"role": "user", "content": "\n".join(results)}]
        else:
            yield list(map(_with_calls, group))


def _with_calls(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    calls = [f"{OPEN}\n{_call(call['function'])}\n{CLOSE}" for call in turn.get("tool_calls", ())]
    if not calls:
        return turn
    content = "\n".join([turn["content"], *calls] if turn["content"] else calls)
    return {**{key: value for key, value in turn.items() if key != "tool_calls"}, "content": content}


def _call(function: Mapping[str, Any]) -> str:
    return _json({"name": function["name"], "arguments": function["arguments"]})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
