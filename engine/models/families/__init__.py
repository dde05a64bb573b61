"""The model families, a file each: how a published `config.json` and its tensor names map to the one transformer.

`engine.models.FAMILIES` lists them. A family is data: it computes nothing. Sees `layers` and what reads checkpoints.
"""
