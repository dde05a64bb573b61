"""What `unmask serve` prints once it listens: the model, how many canvases fit, and an example request."""

import json

from engine import EngineInfo
from server.units import parameters, size

EXAMPLE_PROMPT = "Question: Sort these numbers: 7 3 12 5.\nAnswer:"
TYPICAL_CANVAS = 512
"""Tokens of an ordinary prompt and its answer."""


def start_report(info: EngineInfo, name: str, url: str, *, has_page: bool) -> str:
    example = {"model": name, "prompt": EXAMPLE_PROMPT, "max_tokens": 64, "stream": True}
    fits = [f"{_canvases(info, length)} canvases of {length:,}" for length in _lengths(info)]
    pool = f"{size(info.kv_bytes)} in {info.kv_dtype}"
    stored = info.dtype if info.quantization == "none" else f"{info.quantization} and {info.dtype}"
    lines = {
        "model": f"{name} ({info.spec.family}, {parameters(info.num_parameters)} parameters)",
        "weights": f"{size(info.weight_bytes)} in {stored} on {info.device}, from {info.model}",
        "KV cache": f"{info.kv_tokens:,} tokens ({pool}): {' or '.join(fits)} tokens at once",
        "address": f"{url}/v1",
        **({"page": f"{url}/"} if has_page else {}),
    }
    body = json.dumps(example).replace("'", r"\u0027")
    return "\n".join(
        [
            *(f"{title:>9}  {text}" for title, text in lines.items()),
            "",
            f"curl -N {url}/v1/completions -H 'content-type: application/json' -d '{body}'",
        ]
    )


def _lengths(info: EngineInfo) -> list[int]:
    return [length for length in (TYPICAL_CANVAS,) if length < info.max_model_len] + [info.max_model_len]


def _canvases(info: EngineInfo, tokens: int) -> int:
    """How many canvases of `tokens` tokens the KV pool holds, if none of them share pages."""
    pages = -(-tokens // info.page_size)
    return info.kv_tokens // (pages * info.page_size)
