"""Answers under real constraints, from a model: `python -m tests.constrained --answers 2000` counts the valid ones."""
