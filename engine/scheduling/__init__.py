"""Which requests run: admission, pages, the rows of a step, faults of single requests, checks of submissions, counters.

Sees the policies and `core`; no tensor and no device. Checks of submissions go into `checks`, counters into `tally`.
"""
