"""The ASGI app: routes, streams, start and shutdown of the server's process.

Sees all rooms but commands. A new endpoint is a function in `routes`.
"""
