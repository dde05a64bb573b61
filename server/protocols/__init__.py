"""Bodies of routes that generate, and their answers, in the form of completions and of chat, over one core.

Sees prompts and replies. A field of a body that is known but not honoured is refused in `unsupported`.
"""
