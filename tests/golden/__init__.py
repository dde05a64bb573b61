"""What published code computed from a checkpoint, held against this project: `python -m tests.golden FOLDER`.

A folder has a checkpoint, `logits.safetensors`, and rows that a published sampler generated, in `generations*.json`.
Nothing here knows the ids or sizes of a checkpoint: they come from its files.
"""
