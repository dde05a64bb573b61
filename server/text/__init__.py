"""Between strings and token ids: the checkpoint's own tokenizer and chat template, run where they can be stopped.

Sees `engine` and nothing of the server. `encoder` and what it imports run in a process of their own and must not import
the engine.
"""
