"""Sizes for people: never zero of a unit that is too large, never an exponent."""

import pytest

from server.units import parameters, size


@pytest.mark.parametrize(
    ("count", "text"),
    [(900, "1 K"), (184_320, "184 K"), (1_086_464, "1.1 M"), (999_000_000, "999.0 M"), (8_015_581_184, "8.02 B")],
)
def test_parameters(count, text):
    assert parameters(count) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (768, "768 B"),
        (1536, "1.5 KiB"),
        (1010 * 2**10, "1010 KiB"),
        (4_000_000, "3.81 MiB"),
        (2**34, "16.0 GiB"),
    ],
)
def test_sizes(num_bytes, text):
    assert size(num_bytes) == text
