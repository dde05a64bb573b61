"""Checkpoint folders: their JSON files, special tokens, and safetensors read lazily into a model's parameters.

A family says where each tensor of its checkpoint goes (`Destinations`); nothing here knows a family. Only safetensors
are read, and a checkpoint's own Python code is never run.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from engine.core.errors import LoadError
from engine.models.config_file import TokenId
from engine.models.declared import FILLED, LISTED, Declaration
from engine.models.quantised.published import Published

Progress = Callable[[int, int], None]
"""Called with bytes of the checkpoint's files that are done, and those of all."""


class Destination(NamedTuple):
    """The parameter that a tensor goes to, and its rows there if it is one part of a fused parameter."""

    parameter: str
    start: int = 0
    rows: int | None = None
    expert: int | None = None
    """Which of the weights, where the parameter is one of all experts."""

    def within(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The part of a parameter that the tensor is for."""
        whole = parameters[self.parameter]
        own = whole if self.expert is None else whole[self.expert]
        return own if self.rows is None else own[self.start : self.start + self.rows]


class Staging(Protocol):
    """What happens to parameters that have no memory before they are read, and another form afterwards."""

    def begin(self, weight: Tensor) -> Tensor:
        """Memory for a parameter, before its first tensor is read."""
        ...

    def end(self, parameter: str, weight: Tensor) -> None:
        """Called when the last one was."""
        ...


Destinations = Mapping[str, Destination]
"""Checkpoint tensor name -> where it goes."""

_DTYPES = ("F64", "F32", "BF16", "F16")
"""By safetensors' names. With other dtypes, the stored numbers alone are not the weights."""


class _Named(Declaration):
    content: str


class _AddedToken(_Named):
    id: TokenId


class _Tokenizer(Declaration):
    added_tokens: list[_AddedToken] = field(default_factory=list)


class _TokenizerConfig(Declaration):
    added_tokens_decoder: dict[TokenId, _Named] = field(default_factory=dict)


class _GenerationConfig(Declaration):
    eos_token_id: Annotated[list[TokenId], LISTED] | None = None


class _Index(Declaration):
    weight_map: Annotated[dict[str, Annotated[str, re.compile(r"^[\w.-]+\.safetensors$")]], FILLED]
    """Tensor name -> the file in this folder that has it."""


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
    except OSError as error:  # all other errors of the hub's client are OSErrors
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
    """Reads a JSON object. Raises LoadError with the file's name if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise LoadError(f"{path} holds no JSON object")
    return value


def special_tokens(folder: Path) -> dict[str, int]:
    """The added tokens of `tokenizer.json`, else of `tokenizer_config.json`, text -> id; empty without either."""
    fast, slow = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if fast.exists():
        return {token.content: token.id for token in _Tokenizer.read(read_json(fast), fast).added_tokens}
    if slow.exists():  # for example Dream's, whose tokenizer is `vocab.json` and `merges.txt`
        added = _TokenizerConfig.read(read_json(slow), slow).added_tokens_decoder
        return {token.content: id_ for id_, token in added.items()}
    return {}


def generation_eos_ids(folder: Path) -> list[int]:
    """The tokens that end an answer by `generation_config.json`; empty if it is missing or names none."""
    path = folder / "generation_config.json"
    if not path.exists():
        return []
    return _GenerationConfig.read(read_json(path), path).eos_token_id or []


def find_tensors(
    folder: Path,
    model: nn.Module,
    destinations: Destinations,
    others: Sequence[Path] = (),
    unused: tuple[str, ...] = (),
    published: Published | None = None,
) -> dict[Path, list[str]]:
    """Each file's tensor names, after a check that they are all that the model needs. Reads headers only.

    `others` are files beside those of the folder itself. Names that begin with one of `unused` are left out. Weights
    may be codes as `published` says; what lies beside these is in the answer, too.

    Raises LoadError if a tensor is missing, misshapen, of an unsupported dtype, or not known to the family.
    """
    parameters = dict(model.named_parameters())
    missing, shards = set(destinations), {}
    codes: dict[str, list[int]] = {}
    beside: dict[str, list[int]] = {}
    for path in (*_shards(folder), *others):
        with opened(path) as shard:
            shards[path] = [name for name in shard.keys() if not name.startswith(unused)]  # noqa: SIM118 - no mapping
            for name in shards[path]:
                if published and published.is_beside(name, destinations):
                    beside[name] = shard.get_slice(name).get_shape()
                    continue
                if name not in destinations:
                    raise LoadError(f"{folder}: tensor {name!r} is not part of this architecture")
                tensor, expected = shard.get_slice(name), list(destinations[name].within(parameters).shape)
                if tensor.get_shape() != expected:
                    raise LoadError(f"{folder}: tensor {name!r} is {tensor.get_shape()}, expected {expected}")
                if published and tensor.get_dtype() == published.dtype:
                    codes[name] = expected
                elif tensor.get_dtype() not in _DTYPES:
                    raise LoadError(f"{folder}: tensor {name!r} is {tensor.get_dtype()}, expected one of {_DTYPES}")
        missing.difference_update(shards[path])
    for name, shape in codes.items():
        assert published
        scales = published.scales_of(name)
        if scales not in beside:
            raise LoadError(f"{folder}: tensor {name!r} is {published.dtype}, and its {scales!r} is missing")
        if not published.fits(shape, beside[scales]):
            raise LoadError(f"{folder}: tensor {scales!r} is {beside[scales]}, which does not scale {shape}")
    for name in destinations:
        if published and name not in codes and published.scales_of(name) in beside:
            raise LoadError(f"{folder}: tensor {name!r} has {published.scales_of(name)!r} beside it, and is no codes")
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise LoadError(f"{folder}: the checkpoint lacks {', '.join(sorted(missing)[:3])}{more}")
    return shards


def load_weights(
    model: nn.Module,
    shards: Mapping[Path, Sequence[str]],
    destinations: Destinations,
    progress: Progress | None = None,
    staging: Staging | None = None,
    published: Published | None = None,
) -> None:
    """Copies every tensor to its place, converting to the parameter's dtype and device: numbers, where it is codes.

    `staging` is for parameters of shape alone, where there are any. Others are as for `find_tensors`. Files are mapped
    one after the other, and nothing is held beside the model: what is read of a file is the system's to forget.
    """
    scales = _scales(shards, destinations)
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    done, total = 0, sum(path.stat().st_size for path in shards)
    staged = {name for name, parameter in parameters.items() if parameter.is_meta}
    unread = Counter(place.parameter for place in destinations.values())
    with torch.no_grad():
        for path, names in shards.items():
            with opened(path) as shard:
                for name in names:
                    if name not in destinations:
                        continue
                    place = destinations[name]
                    tensor = shard.get_tensor(name)
                    done += tensor.nbytes
                    if published and (its_scales := scales.get(published.scales_of(name))) is not None:
                        tensor = published.numbers(tensor, its_scales)
                    if staging and parameters[place.parameter].is_meta:
                        parameters[place.parameter] = staging.begin(parameters[place.parameter])
                    place.within(parameters).copy_(tensor)
                    unread[place.parameter] -= 1
                    if staging and place.parameter in staged and not unread[place.parameter]:
                        staging.end(place.parameter, parameters.pop(place.parameter))
                    if progress:
                        progress(done, total)
    if progress:
        progress(total, total)


def _scales(shards: Mapping[Path, Sequence[str]], destinations: Destinations) -> dict[str, Tensor]:
    """What lies beside weights that are codes, by name; a file may have the scales of another one's weights."""
    scales: dict[str, Tensor] = {}
    for path, names in shards.items():
        if beside := [name for name in names if name not in destinations]:
            with opened(path) as shard:
                scales |= {name: shard.get_tensor(name) for name in beside}
    return scales


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Opens a safetensors file. Raises LoadError if it cannot be read, at opening or later."""
    try:
        with safe_open(path, framework="pt") as shard:
            yield shard
    except (OSError, SafetensorError) as error:
        raise LoadError(f"{path} cannot be read: {error}") from None


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in sorted(set(_Index.read(read_json(index), index).weight_map.values()))]
    # Only the names that checkpoints have: a folder may hold other safetensors, too.
    paths = sorted(folder.glob("model.safetensors")) or sorted(folder.glob("model-*-of-*.safetensors"))
    if not paths:
        raise LoadError(f"{folder} has no model.safetensors (other weight formats are not read)")
    return paths
