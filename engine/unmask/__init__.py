"""Unmask policies: which scored positions become tokens.

Sees `core`, and of `scoring` the bans; no tensor. A new policy is a class with `select(request, scores)`, here, and its
line in `policies.UNMASKS`; every test of the policies then runs it.
"""
