"""The chat form, twice: the Jinja template of the checkpoints, and the same in Python for training rows.

LLaDA's turns; tools as Qwen2.5 shows them (Hermes form): their JSON in the system turn, calls as text of the assistant,
results in a turn of the user. A test holds the two equal.
"""

from collections.abc import Sequence

from engine.demo.families.problem import Turn

BOS, EOS, MASK = "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"
HEADER, END_HEADER, EOT = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
SPECIALS = (BOS, EOS, MASK, HEADER, END_HEADER, EOT)
MARKS = ("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Added tokens that are text: an answer may hold them."""

_BEFORE_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_AFTER_TOOLS = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n"
    '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)

TEMPLATE = f"""\
{{%- macro turn(role, content) -%}}
{{{{- '{HEADER}' + role + '{END_HEADER}\\n\\n' + content | trim + '{EOT}' -}}}}
{{%- endmacro -%}}
{{{{- '{BOS}' if messages or tools -}}}}
{{%- set has_system = messages and messages[0].role == 'system' -%}}
{{%- if tools -%}}
{{%- set instructions = namespace(text={_BEFORE_TOOLS!r}) -%}}
{{%- for tool in tools -%}}
{{%- set instructions.text = instructions.text + '\\n' + tool | tojson -%}}
{{%- endfor -%}}
{{%- set instructions.text = instructions.text + {_AFTER_TOOLS!r} -%}}
{{{{- turn('system', (messages[0].content | trim + '\\n\\n' if has_system else '') + instructions.text) -}}}}
{{%- endif -%}}
{{%- for message in messages -%}}
{{%- if message.role == 'system' and loop.first and tools -%}}
{{%- elif message.role == 'tool' -%}}
{{%- if loop.first or loop.previtem.role != 'tool' -%}}{{{{- '{HEADER}user{END_HEADER}\\n' -}}}}{{%- endif -%}}
{{{{- '\\n<tool_response>\\n' + message.content | trim + '\\n</tool_response>' -}}}}
{{%- if loop.last or loop.nextitem.role != 'tool' -%}}{{{{- '{EOT}' -}}}}{{%- endif -%}}
{{%- elif message.tool_calls -%}}
{{%- set said = namespace(text=message.content or '') -%}}
{{%- for call in message.tool_calls -%}}
{{%- set function = call.function if call.function is defined else call -%}}
{{%- set arguments = function.arguments if function.arguments is string else function.arguments | tojson -%}}
{{%- set said.text = said.text + '\\n<tool_call>\\n{{"name": ' + function.name | tojson + ', "arguments": ' -%}}
{{%- set said.text = said.text + arguments + '}}\\n</tool_call>' -%}}
{{%- endfor -%}}
{{{{- turn(message.role, said.text) -}}}}
{{%- else -%}}
{{{{- turn(message.role, message.content) -}}}}
{{%- endif -%}}
{{%- endfor -%}}
{{{{- '{HEADER}assistant{END_HEADER}\\n\\n' if add_generation_prompt -}}}}
"""


def rendered(turns: Sequence[Turn], tools: Sequence[str] = ()) -> list[tuple[str, bool]]:
    """What the template makes of the turns and tools (as JSON), in pieces; true where the assistant speaks.

    The last piece asks the assistant to speak. A piece ends where what the assistant says begins or ends.
    """
    pieces, text = [], BOS
    if tools:
        instructions = "\n".join([_BEFORE_TOOLS, *tools]) + _AFTER_TOOLS
        if turns and turns[0].role == "system":
            instructions, turns = f"{turns[0].content}\n\n{instructions}", turns[1:]
        text += f"{HEADER}system{END_HEADER}\n\n{instructions}{EOT}"
    previous = None
    for i, turn in enumerate(turns):
        if turn.role == "tool":
            text += "" if previous == "tool" else f"{HEADER}user{END_HEADER}\n"
            text += f"\n<tool_response>\n{turn.content}\n</tool_response>"
            text += "" if i + 1 < len(turns) and turns[i + 1].role == "tool" else EOT
        elif turn.role == "assistant":
            pieces += [(f"{text}{HEADER}assistant{END_HEADER}\n\n", False), (turn.content, True)]
            text = EOT
        else:
            text += f"{HEADER}{turn.role}{END_HEADER}\n\n{turn.content}{EOT}"
        previous = turn.role
    return [*pieces, (f"{text}{HEADER}assistant{END_HEADER}\n\n", False)]
