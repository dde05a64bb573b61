"""What decoding costs: the papers' loops written plainly, timed runs of these and of the engine, and arithmetic.

Sees the whole engine; only `engine/__init__.py` imports it. `reference` is also the tests' slow twin of the engine.
"""
