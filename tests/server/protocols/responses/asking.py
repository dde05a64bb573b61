"""How /v1/responses is asked."""

from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from tests.server.tools.asking import PLACE

EVENTS = TypeAdapter(ResponseStreamEvent)
TOOLS = [
    {"type": "function", "name": "look", "description": "Look there.", "parameters": PLACE, "strict": True},
    {"type": "function", "name": "now"},
]
