"""The KV pool and the formats that it stores keys and values in.

Knows layers as numbers, slots and dtypes; no kernel, no sequence and no request. Sees nothing of the other kernels.
"""
