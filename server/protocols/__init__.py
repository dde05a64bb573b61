"""The two protocols that generate, completions and chat: their bodies become orders, and deltas become their answers.

Sees prompts and replies. `unsupported` refuses fields of a body that are known but not honoured.
"""
