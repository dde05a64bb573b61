"""Cache policies: which rows a step recomputes; the others keep the keys and values that they had.

Sees `core` alone, and no tensor. A new policy is a class with `plan(request)`, here, and its line in
`policies.CACHES`; every test of the caches then runs it.
"""
