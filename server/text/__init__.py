"""Conversion between strings and token ids: the checkpoint's tokenizer and chat template, in a process of their own.

A tokenizer or template that hangs is stopped with that process. Sees `engine` and nothing of the server. `encoder` and
its imports run in that process and must not import the engine.
"""
