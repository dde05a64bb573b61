"""Who watches requests: one list of observers, told block by block; metrics, the log and tracing are three of them.

Sees settings, guards and text; changes nothing. A new metric is a family in `metrics`, a new observer
a `watch.Observer`.
"""
