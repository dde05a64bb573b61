"""Tools, calls of them as the model writes them, and how a chat is asked with them."""

PLACE = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
TOOLS = [
    {"type": "function", "function": {"name": "look", "description": "Look there.", "parameters": PLACE}},
    {"type": "function", "function": {"name": "now"}},
]
NAMED = {"type": "function", "function": {"name": "look"}}


def allowed(mode, *names):
    """The choice of those of the tools."""
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
LOOK = '<tool_call>\n{"name": "look", "arguments": {"place": "Rome"}}\n</tool_call>'
USER = {"role": "user", "content": "hi"}


async def ask(api, **body):
    response = await api.chat(**{"tools": TOOLS, **body})
    assert response.status_code == 200, response.text
    return response.json()


async def stream(api, **body):
    response = await api.chat(**{"tools": TOOLS, "stream": True, **body})
    assert response.status_code == 200, response.text
    return api.events_of(response.text)


def function(**fields):
    return {"type": "function", "function": fields}
