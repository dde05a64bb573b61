"""Turns the logits of target positions into proposals: tokens, the model's confidence in them, log-probabilities.

Sees `core` and `kernels`. Knows what policies need, not which policy asks. Changes of logits that requests ask for go
into `edits`, drawing into `sampling`, reported log-probabilities into `logprobs`.
"""
