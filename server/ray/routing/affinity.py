"""What tells requests apart that begin alike: the key by which they find the replica that holds their pages.

Reads bodies of every API without its schema: a body that is wrong gets its 400 from the replica.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

OPENING = 512
"""Characters of a prompt's beginning that count: a few KV pages, below which there is little to find again."""

_FIRST = ("system", "instructions")
"""Fields that APIs put before the conversation."""
_CONVERSATIONS = ("messages", "input")


def affinity(body: bytes, tenant: str) -> str | None:
    """The key of a request: of its tenant's `prompt_cache_key`, else of how its prompt begins; None has no prompt.

    A conversation counts up to the end of its first message by the user, so that all its turns have one key.
    """
    try:
        fields = json.loads(body)
    except ValueError:
        return None
    if not isinstance(fields, dict):
        return None
    named = fields.get("prompt_cache_key")
    told = ["named", named] if isinstance(named, str) and named else ["begins", _opening(fields)]
    return hashlib.sha256(f"{tenant}\n{_written(told)}".encode()).hexdigest() if told[1] else None


def _opening(fields: Mapping[str, Any]) -> str:
    parts = [fields[name] for name in _FIRST if fields.get(name)]
    for name in _CONVERSATIONS:
        value = fields.get(name)
        parts += _up_to_user(value) if isinstance(value, list) else [value] if value else []
    if prompt := fields.get("prompt"):
        parts.append(_first(prompt))
    return _written(parts)[:OPENING] if parts else ""


def _up_to_user(messages: Sequence[Any]) -> Iterator[Any]:
    for message in messages:
        if not isinstance(message, dict):
            return
        yield [message.get("role"), message.get("content")]
        if message.get("role") == "user":
            return


def _first(prompt: Any) -> Any:
    """Of several prompts the first; of a list of tokens as many as could count."""
    if isinstance(prompt, list):
        return prompt[0] if isinstance(prompt[0], str | list) else prompt[:OPENING]
    return prompt


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))
