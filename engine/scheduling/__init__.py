"""Who runs: admission, pages, the rows of a step, faults of single requests, checks of submissions, what it all cost.

Sees the policies and `core`; no tensor and no device. A check of what is submitted goes into `checks`, a count into
`tally`.
"""
