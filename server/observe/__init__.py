"""Observers of requests: metrics, the log and tracing, called for each block and each end.

Sees settings, guards and text; changes nothing. A new metric is a family in `metrics`, a new observer
an `observer.Observer`.
"""
