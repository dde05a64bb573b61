"""What decoding costs: the papers' loops written plainly, timed runs of these and of the engine, and arithmetic.

Sees the whole engine; seen by nobody but the face. `reference` is also the tests' slow twin of the engine.
"""
