"""Anthropic's /v1/messages: a body as a chat, and an answer as content blocks and named events."""
