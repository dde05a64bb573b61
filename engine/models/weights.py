"""Checkpoint folders: `config.json`, special tokens, and safetensors read lazily into a model's parameters.

A family says where each tensor of its checkpoint goes (`Destinations`); nothing here knows a family. Only safetensors
are read, and a checkpoint's own Python code is never run.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from engine.errors import LoadError

Progress = Callable[[int, int], None]
"""Called with tensors done and tensors in all."""


class Destination(NamedTuple):
    """A parameter, and for a tensor that is one part of a fused parameter the rows it takes."""

    parameter: str
    start: int = 0
    rows: int | None = None


Destinations = Mapping[str, Destination]
"""Checkpoint tensor name -> where it goes."""


def locate(model: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder of a checkpoint: the path itself, or a hub id's files, downloaded unless cached.

    Raises LoadError if there is neither.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise LoadError(f"{model} is a file, not the folder of a checkpoint")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        raise LoadError(f"{model}: no such folder, and not a hub id of the form owner/name")
    try:
        files = ["*.json", "merges.txt", "*.jinja", *(["*.safetensors"] if weights else [])]
        return Path(snapshot_download(model, revision=revision, allow_patterns=files))
    except HFValidationError:
        raise LoadError(f"{model}: no such folder, and not a hub id of the form owner/name") from None
    except OSError as error:  # whatever else the hub's client raises is one
        reason = _why_not(error, revision)
        raise LoadError(f"{model}: no such folder, and the hub does not give it: {reason}") from None


def _why_not(error: OSError, revision: str | None) -> str:
    """What the user can do about a model that was not downloaded."""
    match error:
        case GatedRepoError():
            return "its owner wants its terms accepted on its page first, then `hf auth login` or HF_TOKEN"
        case RepositoryNotFoundError():
            return "it has none of this name, or a private one, which needs `hf auth login` or HF_TOKEN"
        case RevisionNotFoundError():
            return f"it has no revision {revision}"
    said = str(error).strip().partition("\n")[0]
    return f"{said} (without a network give a folder, or an id that was downloaded before)"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises LoadError with the file's name if there is none."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise LoadError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise LoadError(f"{path} holds no JSON object")
    return value


def special_tokens(folder: Path) -> dict[str, int]:
    """The added tokens of `tokenizer.json`, else of `tokenizer_config.json`, text -> id; empty without either."""
    fast, slow = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if fast.exists():
        return {str(token["content"]): int(token["id"]) for token in read_json(fast).get("added_tokens", ())}
    if slow.exists():  # as Dream's checkpoints have it, whose tokenizer is `vocab.json` and `merges.txt`
        return {str(token["content"]): int(i) for i, token in read_json(slow).get("added_tokens_decoder", {}).items()}
    return {}


def load_weights(model: nn.Module, folder: Path, destinations: Destinations, progress: Progress | None = None) -> None:
    """Copies every tensor to its place, converting to the parameter's dtype and device.

    Raises LoadError if a tensor is missing, misshapen, or not known to the family.
    """
    parameters = dict(model.named_parameters())
    missing = set(destinations)
    with torch.no_grad():
        for done, (name, tensor) in enumerate(_tensors(folder), start=1):
            if name not in destinations:
                raise LoadError(f"{folder}: tensor {name!r} is not part of this architecture")
            parameter, start, rows = destinations[name]
            whole = parameters[parameter]
            target = whole if rows is None else whole[start : start + rows]
            if tensor.shape != target.shape:
                raise LoadError(f"{folder}: tensor {name!r} is {list(tensor.shape)}, expected {list(target.shape)}")
            target.copy_(tensor)
            missing.discard(name)
            if progress:
                progress(done, len(destinations))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise LoadError(f"{folder}: the checkpoint lacks {', '.join(sorted(missing)[:3])}{more}")


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    paths = _shards(folder)
    for path in paths:
        try:
            with safe_open(path, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 (not a mapping: it cannot be iterated)
                    yield name, shard.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise LoadError(f"{path} cannot be read: {error}") from None


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        return [folder / name for name in names]
    # A folder may hold other safetensors too: only the names that checkpoints have.
    paths = sorted(folder.glob("model.safetensors")) or sorted(folder.glob("model-*-of-*.safetensors"))
    if not paths:
        raise LoadError(f"{folder} has no model.safetensors (other weight formats are not read)")
    return paths
