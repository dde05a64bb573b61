"""What a page can say of the model and of its settings: what a bundled model can do, each option in a sentence.

Knows nothing of how it is told or shown.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine import BUNDLED, CACHES, UNMASKS, EngineInfo

OPTIONS: Mapping[str, Mapping[str, str]] = {
    "cache": {
        "auto": "The server takes the one that suits the model.",
        "none": "Computes every position at every step: exact, and the slowest.",
        "prefix": "Keeps what stands before the open block until the next block opens.",
        "dual": "Computes the open block alone, and everything once when a block opens.",
        "window": "As dual, but when a block opens only its neighbourhood is computed again.",
        "delayed": "As window, and a decoded token is computed once more and then kept.",
        "d2": "Computes the most promising masks, and the positions that they attend to most.",
        "block": "Keeps finished blocks for good, which is exact for block-causal models.",
        "sub_block": "As block, and computes only the part of the open block that is being decoded.",
    },
    "unmask": {
        "fixed": "A fixed number of tokens a step, the surest first; without steps, one.",
        "random": "A fixed number of tokens a step, anywhere in the block.",
        "threshold": "All tokens that are at least as sure as the threshold, and always the surest.",
        "factor": "As many of the surest tokens as their doubts together allow.",
        "cad": "A threshold that falls within a block; the surer the model, the longer the blocks.",
        "dream": "Dream's own sampler: the canvas is one block, with a fixed number of tokens a step.",
        "entropy": "A fixed number of tokens a step, those of the lowest entropy first.",
        "margin": "A fixed number of tokens a step, those with the widest lead over the second best first.",
        "entropy_bound": "The surest tokens, as many as their entropies together allow.",
        "certainty": "A fixed number of tokens a step, sure ones beside decoded ones first: nearly left to right.",
        "certainty_threshold": "All tokens that are sure enough and near decoded ones.",
        "sequential": "From left to right, a fixed number of tokens a step.",
        "low_confidence_static": "A fixed number of tokens a step in each block, the surest first.",
        "low_confidence_dynamic": "All tokens that are surer than the threshold, and at least as many as are due.",
        "edit": "As threshold, and a decoded token is replaced where the model has become sure of another.",
        "insert_delete": "As edit, and tokens may be inserted and deleted: what stands behind them moves.",
        "entropy_bounded": "The tokens of the lowest entropy, as many as stay below a bound together.",
        "confidence_threshold": "All tokens that are sure enough; in the last step of a block, all that are left.",
        "low_confidence": "What is left of a block over the steps that it has left, the surest first.",
        "leftmost": "What is left of a block over the steps that it has left, from left to right.",
        "linear_spec": "Drafts a block, and keeps what the model says of it from left to right.",
        "renoise": "Every position holds a token from the start: sure ones stay, the others are drawn anew.",
    },
    "alg": {
        "entropy": "Tokens of the lowest entropy first.",
        "maskgit_plus": "The most probable tokens first.",
        "topk_margin": "Tokens with the widest lead over the second best first.",
        "origin": "Tokens in an order of chance.",
    },
    "confidence_method": {
        "softmax": "How sure a token is, is its probability.",
        "entropy": "How sure a token is, comes from the entropy at its position.",
    },
    "kv_score": {
        "rkv": "Keys that much attention reaches and that are unlike the others.",
        "attention": "Keys that much attention reaches.",
        "recent": "The latest tokens.",
        "random": "Any tokens: what the others are measured against.",
    },
    "guidance": {
        "posterior": "Tokens and confidences are those of the valid answers alone.",
        "model": "The model's own tokens, as long as they can become a valid answer; takes more steps.",
    },
}
"""Of each value of a parameter of `diffusion` with named values, what it does."""

_SCHEMA = """{
  "type": "object",
  "properties": {"name": {"type": "string"}, "count": {"type": "integer"}},
  "required": ["name", "count"],
  "additionalProperties": false
}"""

_GAP = {"name": "A gap to fill", "state": {"prompt": "What is the capital of France? The answer is<|fill:1|>."}}
"""For models that see what stands behind a gap."""

_TOY: Mapping[str, Any] = {
    "summary": "a tiny toy model that comes with the server",
    "limits": "It works out small sums and short word problems, sorts three to six numbers up to 20, reverses a few "
    "words, knows 155 facts (capitals, opposites, colours, animals, days), tells stories, makes forms of sentences, "
    "calls two small tools, and answers questions about a short text. It knows nothing else, and says so.",
    "examples": [
        {
            "name": "A word problem",
            "state": {
                "prompt": "Tom has 7 apples. Tom buys 3 more. Tom loses 4 of them. Tom finds 2 more. "
                "How many apples does Tom have now?"
            },
        },
        {"name": "A capital", "state": {"prompt": "What is the capital of Norway?"}},
        {"name": "An opposite", "state": {"prompt": "What is the opposite of hot?"}},
        {"name": "Sorting", "state": {"prompt": "Sort these numbers: 14 3 9 20."}},
        {
            "name": "Yes or no",
            "state": {"prompt": "Leo has a white lamp. Lucy is in the park. Does Lucy have the lamp? Yes or no?"},
        },
        {"name": "What it can do", "state": {"prompt": "What can you do?"}},
        _GAP,
        {
            "name": "JSON",
            "state": {
                "prompt": "On Friday Tom found 3 red shells in the park. Give name and count as JSON.",
                "kind": "json",
                "constraint": _SCHEMA,
            },
        },
        {
            "name": "One word at a time",
            "state": {
                "prompt": "Question: Tell me a story about Ann.\nAnswer:",
                "max_tokens": "48",
                "panes": [{"unmask": "fixed"}, {}],
            },
        },
    ],
}
"""Of both bundled models, which were trained for the same."""

_ABOUT = {Path(folder): _TOY for folder in BUNDLED.values()}


def about(info: EngineInfo) -> Mapping[str, Any]:
    """What the page says of a model: always `parameters` and `end_token_ids`; of a bundled one also `summary`, `limits`
    and `examples`, each a `name` and what differs from an empty form (`EMPTY` in `request.js`)."""
    told: dict[str, Any] = {"parameters": info.num_parameters, "end_token_ids": sorted(info.spec.eos_ids)}
    told |= _ABOUT.get(info.folder, {})
    if "examples" in told and info.spec.is_block_causal:
        told["examples"] = [example for example in told["examples"] if example is not _GAP]
    return told


def unfit(info: EngineInfo) -> Mapping[str, list[str] | None]:
    """What this model refuses in every request: by parameter of `diffusion`, the values; None is all of them."""
    spec = info.spec
    return {
        "cache": [name for name, cache in CACHES.items() if not cache.fits(spec)],
        "unmask": [name for name, unmask in UNMASKS.items() if not unmask.fits(spec)],
        **({} if spec.is_block_causal and spec.mask_id is not None else {"sub_block_length": None}),
    }
