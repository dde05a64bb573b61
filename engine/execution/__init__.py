"""A batch on a device: its flat tensors, the forward, the memory it takes, what of it failed, and the first steps.

Sees everything below the engine. What depends on a device or its memory is decided here.
"""
