"""Pairs of policies: the product of the lists, and the fields of `diffusion` that they set."""

from server.eval.policy import PolicyPair, product

VALUES = {"tokens_per_step": [1.0, 4.0], "threshold": [0.9], "factor": [1.0]}


def test_policies_are_a_product():
    policies = product(["none", "dual"], ["fixed", "entropy_bound"], VALUES, 32)
    assert [(policy.cache, policy.label) for policy in policies] == [
        (cache, label) for cache in ("none", "dual") for label in ("fixed 1", "fixed 4", "entropy_bound")
    ]
    assert policies[1].diffusion(50) == {"cache": "none", "unmask": "fixed", "block_length": 32, "steps": 16}
    assert PolicyPair().diffusion(64) == {}


def test_a_format_is_no_field_of_a_request():
    policies = product(["dual"], ["threshold"], VALUES, 32, lookaheads=[16], kv_dtypes=["auto", "int8"])
    assert [policy.cache_label for policy in policies] == ["dual +16", "dual +16:int8"]
    assert policies[0].diffusion(64) == policies[1].diffusion(64)
