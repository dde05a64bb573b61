"""HTTP and the command line: strings, schemas, SSE, metrics, settings.

Sees of the engine only what `engine/__init__.py` hands out, and never a tensor.
"""
