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
    """As `weights.load_weights`, into a rank's model; `destinations` and `whole` are those of the whole one.

    `progress` is told bytes of the part, in its own dtype.
    """
    parameters, done = dict(part.named_parameters()), 0
    total = sum(parameter.nbytes for parameter in parameters.values())
    with torch.no_grad():
        for path, names in files.items():
            with opened(path) as file:
                for name in names:
                    done += _copy(file, name, destinations[name], parameters, whole, rank)
                    if progress:
                        progress(done, total)


def _copy(
    file: Any,
    name: str,
    place: Destination,
    parameters: Mapping[str, Tensor],
    whole: TransformerConfig,
    rank: Rank,
) -> int:
    """Returns how many bytes of the part are done with it."""
    cut = cut_of(place.parameter, whole, rank.size)
    if cut is None:
        return place.within(parameters).copy_(file.get_tensor(name)).nbytes
    kept = parameters[place.parameter]
    own = kept if place.expert is None else kept[place.expert]
    tensor = file.get_slice(name)
    sizes, done = tensor.get_shape(), 0
    for piece in cut.pieces(rank, place.start, sizes[cut.dim]):
        some = [slice(None)] * len(sizes)
        some[cut.dim] = slice(piece.source, piece.source + piece.width)
        done += own.narrow(cut.dim, piece.target, piece.width).copy_(tensor[tuple(some)]).nbytes
    return done
