"""The APIs that generate: bodies in, answers out.

Completions and chat stand here. Others have a folder each (`responses`, `messages`), which translates bodies to chats
(`translated`), so that all of them share one core, and writes answers from the blocks of text and calls that these are
made of (`blocks`).

Sees prompts and replies. `unsupported` refuses fields of a body that are known but not honoured.
"""
