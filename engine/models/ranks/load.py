"""Reads a rank's part of a checkpoint: of each tensor only the rows or columns that the rank holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.models.layers import TransformerConfig
from engine.models.ranks.cut import Rank, cut_of
from engine.models.weights import Destination, Destinations, Progress, opened


def load_part(
    part: nn.Module,
    files: Mapping[Path, Sequence[str]],
    destinations: Destinations,
    whole: TransformerConfig,
    rank: Rank,
    progress: Progress | None = None,
) -> None:
    """As `weights.load_weights`, into a rank's model; `destinations` and `whole` are those of the whole one."""
    parameters, done = dict(part.named_parameters()), 0
    with torch.no_grad():
        for path, names in files.items():
            with opened(path) as file:
                for name in names:
                    _copy(file, name, destinations[name], parameters, whole, rank)
                    done += 1
                    if progress:
                        progress(done, len(destinations))


def _copy(
    file: Any,
    name: str,
    place: Destination,
    parameters: Mapping[str, Tensor],
    whole: TransformerConfig,
    rank: Rank,
) -> None:
    cut = cut_of(place.parameter, whole, rank.size)
    if cut is None:
        place.within(parameters).copy_(file.get_tensor(name))
        return
    kept = parameters[place.parameter]
    own = kept if place.expert is None else kept[place.expert]
    tensor = file.get_slice(name)
    sizes = tensor.get_shape()
    for piece in cut.pieces(rank, place.start, sizes[cut.dim]):
        some = [slice(None)] * len(sizes)
        some[cut.dim] = slice(piece.source, piece.source + piece.width)
        own.narrow(cut.dim, piece.target, piece.width).copy_(tensor[tuple(some)])
