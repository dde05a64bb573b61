"""Weights as codes: torchao's of layers while they are loaded, and those of checkpoints that were published as codes.

Knows layers and files; no batch, no policy.
"""
