"""The ASGI app: routes, streams, the life of the server's process.

Sees all rooms but commands. A new endpoint is a function in `routes`.
"""
