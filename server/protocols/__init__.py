"""The two protocols that generate: completions and chat.

Bodies become generation requests, and deltas become responses in the protocol's form.

Sees prompts and replies. `unsupported` refuses fields of a body that are known but not honoured.
"""
