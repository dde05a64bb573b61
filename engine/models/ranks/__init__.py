"""A model cut for several ranks: which part of each weight is whose, reading a part, and sums over parts in a forward.

Knows weights by name and a function that sums a tensor over all ranks; no processes, no devices and no batches.
"""
