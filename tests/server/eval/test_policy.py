"""Pairs of policies: the product of the lists, and the fields of `diffusion` that they set."""

import pytest

from engine import ConfigError
from server.eval.policy import KVFormat, PolicyPair, product

FORMATS = [KVFormat.named(name) for name in ("auto", "int8", "fp8/0.25")]
VALUES = {"tokens_per_step": [1.0, 4.0], "threshold": [0.9], "factor": [1.0]}


def test_policies_are_a_product():
    policies = product(["none", "dual"], ["fixed", "entropy_bound"], VALUES, 32)
    assert [(policy.cache, policy.label) for policy in policies] == [
        (cache, label) for cache in ("none", "dual") for label in ("fixed 1", "fixed 4", "entropy_bound")
    ]
    assert policies[1].diffusion(50) == {"cache": "none", "unmask": "fixed", "block_length": 32, "steps": 16}
    assert PolicyPair().diffusion(64) == {}


def test_a_format_is_no_field_of_a_request():
    policies = product(["dual"], ["threshold"], VALUES, 32, lookaheads=[16], kv_formats=FORMATS)
    assert [policy.cache_label for policy in policies] == ["dual +16", "dual +16:int8", "dual +16:fp8/0.25"]
    assert policies[0].diffusion(64) == policies[1].diffusion(64) == policies[2].diffusion(64)


@pytest.mark.parametrize("name", ["int4", "int8/", "int8/1.5", "int8/x", "int8/-0.1", "/0.1", ""])
def test_formats_that_there_are_not(name):
    with pytest.raises(ConfigError, match=f"'{name}' is no KV format; choose among auto, int8, fp8, or prune as in"):
        KVFormat.named(name)


def test_what_is_not_coded_is_not_pruned():
    with pytest.raises(ConfigError, match=r"kv_prune is 0\.1, which needs kv_dtype int8 or fp8"):
        KVFormat.named("auto/0.1")
