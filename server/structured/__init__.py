"""Compiles constraints on answers (JSON Schema, regex, choice, grammar, tool calls) to automata over token ids.

Knows bytes, code points and spellings of tokens, but no model, no HTTP and nothing of decoding. Made to run in a
process of its own, so imports neither the engine nor the rest of the server. A user's regex never runs on a text: what
reads texts are automata.
"""
