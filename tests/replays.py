"""Bodies as agents send them, written from the documented shapes of their requests: long prompts, many tools, and
fields that no other client sends. Names and schemas are like theirs; the prose is filling.
"""

WORDS = "the tool reads a file of the project and tells what stands there before anything is changed in it "
"""About 20 tokens."""


def prose(num_tokens):
    return WORDS * (num_tokens // 20)


def schema(required=(), **properties):
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {name: {"description": prose(20), **told} for name, told in properties.items()},
        "required": list(required),
        "additionalProperties": False,
    }


TEXT = {"type": "string"}
NUMBER = {"type": "number"}
FLAG = {"type": "boolean", "default": False}

CLAUDE_CODE_SCHEMAS = {
    "Agent": schema(
        ["description", "prompt"],
        description=TEXT,
        prompt=TEXT,
        subagent_type=TEXT,
        model={"type": "string", "enum": ["sonnet", "opus", "haiku"]},
        run_in_background=FLAG,
    ),
    "Bash": schema(["command"], command=TEXT, timeout=NUMBER, description=TEXT, run_in_background=FLAG),
    "Glob": schema(["pattern"], pattern=TEXT, path=TEXT),
    "Grep": schema(
        ["pattern"],
        **{
            "pattern": TEXT,
            "path": TEXT,
            "glob": TEXT,
            "output_mode": {"type": "string", "enum": ["content", "files_with_matches", "count"]},
            "-B": NUMBER,
            "-A": NUMBER,
            "-n": {"type": "boolean"},
            "-i": {"type": "boolean"},
            "head_limit": NUMBER,
            "multiline": FLAG,
        },
    ),
    "Read": schema(
        ["file_path"],
        file_path=TEXT,
        offset={"type": "integer", "minimum": 0, "maximum": 9007199254740991},
        limit={"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991},
        pages=TEXT,
    ),
    "Edit": schema(
        ["file_path", "old_string", "new_string"], file_path=TEXT, old_string=TEXT, new_string=TEXT, replace_all=FLAG
    ),
    "Write": schema(["file_path", "content"], file_path=TEXT, content=TEXT),
    "NotebookEdit": schema(
        ["notebook_path", "new_source"],
        notebook_path=TEXT,
        cell_id=TEXT,
        new_source=TEXT,
        cell_type={"type": "string", "enum": ["code", "markdown"]},
        edit_mode={"type": "string", "enum": ["replace", "insert", "delete"]},
    ),
    "WebFetch": schema(["url", "prompt"], url={"type": "string", "format": "uri"}, prompt=TEXT),
    "WebSearch": schema(
        ["query"],
        query={"type": "string", "minLength": 2},
        allowed_domains={"type": "array", "items": TEXT},
        blocked_domains={"type": "array", "items": TEXT},
    ),
    "TodoWrite": schema(
        ["todos"],
        todos={
            "type": "array",
            "items": schema(
                ["content", "status", "activeForm"],
                content={"type": "string", "minLength": 1},
                status={"type": "string", "enum": ["pending", "in_progress", "completed"]},
                activeForm={"type": "string", "minLength": 1},
            ),
        },
    ),
    "TaskOutput": schema(["task_id", "block"], task_id=TEXT, block=FLAG, timeout={"type": "number", "maximum": 600000}),
    "TaskStop": schema([], task_id=TEXT, shell_id=TEXT),
    "Skill": schema(["skill"], skill=TEXT, args=TEXT),
    "EnterPlanMode": schema(),
    "ExitPlanMode": {"type": "object", "properties": {}, "additionalProperties": {}},
    "AskUserQuestion": schema(
        ["questions"],
        questions={
            "type": "array",
            "minItems": 1,
            "maxItems": 4,
            "items": schema(
                ["question", "header", "options", "multiSelect"],
                question=TEXT,
                header=TEXT,
                options={
                    "type": "array",
                    "minItems": 2,
                    "maxItems": 4,
                    "items": schema(["label", "description"], label=TEXT, description=TEXT),
                },
                multiSelect=FLAG,
            ),
        },
        answers={"type": "object", "propertyNames": TEXT, "additionalProperties": TEXT},
    ),
    "ListMcpResourcesTool": schema([], server=TEXT),
    "ReadMcpResourceTool": schema(["server", "uri"], server=TEXT, uri=TEXT),
    "mcp__a_server_with_a_long_name_of_its_own__a_tool_with_a_long_name_too": schema(["query"], query=TEXT),
}


def claude_code(**changed):
    """A turn of Claude Code, within a conversation that has called tools."""
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    tools = [
        {"name": name, "description": prose(280), "input_schema": parameters, "eager_input_streaming": True}
        for name, parameters in CLAUDE_CODE_SCHEMAS.items()
    ]
    return {
        "model": "demo",
        "max_tokens": 32000,
        "stream": True,
        "metadata": {"user_id": "user_0123_account__session_4567"},
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "a_field_of_next_year": {"a": 1},
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.0; cc_entrypoint=cli;"},
            {"type": "text", "text": "You help with the code of a project.", **cached},
            {"type": "text", "text": prose(4000), **cached},
        ],
        "tools": [*tools, {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": f"<system-reminder>\n{prose(2000)}\n</system-reminder>"},
                    {"type": "text", "text": "What does this project do?", **cached},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "The page at the top tells.", "signature": "c2lnbmF0dXJl"},
                    {"type": "text", "text": "I look at what is there."},
                    {"type": "tool_use", "id": "toolu_01A", "name": "Glob", "input": {"pattern": "*"}},
                    {"type": "tool_use", "id": "toolu_01B", "name": "Read", "input": {"file_path": "README.md"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"tool_use_id": "toolu_01A", "type": "tool_result", "content": "README.md\nsrc"},
                    {
                        "tool_use_id": "toolu_01B",
                        "type": "tool_result",
                        "content": [{"type": "text", "text": prose(1000)}],
                        "is_error": False,
                        **cached,
                    },
                ],
            },
        ],
        **changed,
    }


CODEX_SCHEMAS = {
    "exec_command": {
        "type": "object",
        "properties": {
            "cmd": TEXT,
            "workdir": TEXT,
            "shell": TEXT,
            "login": {"type": "boolean"},
            "tty": {"type": "boolean"},
            "yield_time_ms": NUMBER,
            "max_output_tokens": NUMBER,
            "sandbox_permissions": TEXT,
            "justification": TEXT,
            "prefix_rule": {"type": "array", "items": TEXT},
        },
        "required": ["cmd"],
        "additionalProperties": False,
    },
    "write_stdin": {
        "type": "object",
        "properties": {"session_id": NUMBER, "chars": TEXT, "yield_time_ms": NUMBER, "max_output_tokens": NUMBER},
        "required": ["session_id"],
        "additionalProperties": False,
    },
    "update_plan": {
        "type": "object",
        "properties": {
            "explanation": TEXT,
            "plan": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"step": TEXT, "status": TEXT},
                    "required": ["step", "status"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["plan"],
        "additionalProperties": False,
    },
    "view_image": {
        "type": "object",
        "properties": {"path": TEXT},
        "required": ["path"],
        "additionalProperties": False,
    },
    **{
        f"mcp__docs__tool_{number}": {
            "type": "object",
            "properties": {"query": TEXT, "limit": {"type": "integer"}, "kind": {"enum": ["page", "file"]}},
            "required": ["query"],
        }
        for number in range(13)
    },
}


def codex(**changed):
    """A turn of Codex CLI, within a conversation that has called tools."""
    functions = [
        {"type": "function", "name": name, "description": prose(240), "strict": False, "parameters": parameters}
        for name, parameters in CODEX_SCHEMAS.items()
    ]
    return {
        "model": "demo",
        "instructions": prose(6000),
        "input": [
            {
                "type": "message",
                "role": "developer",
                "content": [{"type": "input_text", "text": f"<permissions instructions>{prose(1000)}"}],
            },
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": f"# AGENTS.md instructions\n{prose(2000)}"},
                    {
                        "type": "input_text",
                        "text": "<environment_context>\n  <shell>bash</shell>\n</environment_context>",
                    },
                ],
            },
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "What does this project do?"}],
            },
            {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "Z0FBQUFB"},
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "I look at what is there."}],
                "phase": "commentary",
            },
            {
                "type": "function_call",
                "name": "exec_command",
                "arguments": '{"cmd":"cat README.md","workdir":"."}',
                "call_id": "call_0123",
            },
            {"type": "function_call_output", "call_id": "call_0123", "output": prose(1000)},
        ],
        "tools": [
            *functions,
            {"type": "web_search", "external_web_access": False},
            {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark"}},
            {"type": "namespace", "name": "mcp__other", "description": "Others.", "tools": functions[:1]},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199c0de-0000-7000-8000-000000000000",
        "client_metadata": {"x-codex-installation-id": "0199"},
        "text": {"verbosity": "low"},
        "a_field_of_next_year": [1],
        **changed,
    }
