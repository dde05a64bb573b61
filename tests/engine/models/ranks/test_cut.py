"""Each rank's part of a checkpoint, against the whole model, in every family."""

import pytest
import torch

from engine.models import describe, load_model
from engine.models.ranks.cut import Rank, check_divides, cut_of
from tests.engine.execution.ranks.in_threads import DATA, FOLDERS

CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "size"), [*((name, 2) for name in FOLDERS), ("diffusion-gemma-tiny", 4)])
def test_parts_are_those_of_the_whole_model(name, size):
    description = describe(DATA / name)
    check_divides(description.geometry, size)
    whole = dict(load_model(DATA / name, description, torch.float32, CPU).named_parameters())
    held = {parameter: torch.zeros(tensor.shape, dtype=torch.int64) for parameter, tensor in whole.items()}
    for number in range(size):
        rank = Rank(number, size)
        told = []
        part = load_model(
            DATA / name, description, torch.float32, CPU, lambda *how, told=told: told.append(how), rank=rank
        )
        assert told[-1] == (part_bytes := sum(each.nbytes for each in part.parameters()), part_bytes)
        assert sum(each.numel() for each in part.parameters()) == rank.geometry(description.geometry).num_parameters
        for parameter, own in part.named_parameters():
            cut = cut_of(parameter, description.geometry, size)
            tensor = whole[parameter]
            if cut is None:
                assert torch.equal(own, tensor)
                held[parameter] += 1
                continue
            some = [
                torch.arange(piece.source, piece.source + piece.width)
                for piece in cut.pieces(rank, 0, tensor.shape[cut.dim])
            ]
            assert torch.equal(own, tensor.index_select(cut.dim, torch.cat(some)))
            held[parameter].index_add_(cut.dim, torch.cat(some), torch.ones_like(own, dtype=torch.int64))
    assert all((counts > 0).all() for counts in held.values()), "a number that no rank holds"


def test_parts_of_a_fused_parameter_are_cut_each():
    geometry = describe(DATA / "dream-tiny").geometry  # 4 heads of 16, 2 of keys and values
    cut = cut_of("blocks.1.attention.qkv.weight", geometry, 2)
    assert [list(cut.pieces(Rank(1, 2), 0, 128))] == [[(32, 0, 32), (80, 32, 16), (112, 48, 16)]]
    assert list(cut.pieces(Rank(1, 2), 64, 32)) == [(16, 32, 16)], "the keys' own tensor"
    four = cut_of("blocks.1.attention.qkv.bias", geometry, 4)
    assert [list(four.pieces(Rank(number, 4), 64, 32)) for number in range(4)] == [
        [(0, 16, 16)],
        [(0, 16, 16)],
        [(16, 16, 16)],
        [(16, 16, 16)],
    ], "two ranks hold each head of keys"
