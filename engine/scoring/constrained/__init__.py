"""Proposals under constraints: logits become numbers of classes of tokens, a chain ties a block's positions together.

`spans` says what is open, `classes` what logits say of it, reduced by `tables`, `chain` which answers are left
and what they weigh; `native` computes the same by kernels. `posterior` puts scores together.
"""
