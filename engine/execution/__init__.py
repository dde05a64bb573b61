"""Runs a batch on a device: its flat tensors, the forward, its memory, which part of it failed, warm-up, and
what is chosen when a server starts.

Sees all rooms below `engine.py`. What depends on a device or its memory is decided here.
"""
