"""OpenAI's /v1/responses: a body as a chat, and an answer as items and named events. Nothing is stored."""
