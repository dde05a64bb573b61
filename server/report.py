"""What `unmask serve` prints once it is up: what is served, how much fits, and a line to try it with."""

import json

from engine import EngineInfo

EXAMPLE_PROMPT = "Question: Sort these numbers: 7 3 12 5.\nAnswer:"
TYPICAL_CANVAS = 512
"""Tokens of an ordinary prompt and its answer."""


def start_report(info: EngineInfo, name: str, url: str) -> str:
    example = {"model": name, "prompt": EXAMPLE_PROMPT, "max_tokens": 64, "stream": True}
    fits = [f"{_canvases(info, size)} canvases of {size:,}" for size in _sizes(info)]
    lines = {
        "model": f"{name} ({info.spec.family}, {info.num_parameters / 1e6:,.1f} M parameters)",
        "weights": f"{_bytes(info.weight_bytes)} in {info.dtype} on {info.device}, from {info.model}",
        "KV cache": f"{info.kv_tokens:,} tokens ({_bytes(info.kv_bytes)}): {' or '.join(fits)} tokens at once",
        "address": f"{url}/v1",
    }
    body = json.dumps(example).replace("'", r"\u0027")
    return "\n".join(
        [
            *(f"{title:>9}  {text}" for title, text in lines.items()),
            "",
            f"curl -N {url}/v1/completions -H 'content-type: application/json' -d '{body}'",
        ]
    )


def _sizes(info: EngineInfo) -> list[int]:
    return [size for size in (TYPICAL_CANVAS,) if size < info.max_model_len] + [info.max_model_len]


def _canvases(info: EngineInfo, tokens: int) -> int:
    """How many canvases of that many tokens the pool holds; pages are not shared."""
    pages = -(-tokens // info.page_size)
    return info.kv_tokens // (pages * info.page_size)


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
