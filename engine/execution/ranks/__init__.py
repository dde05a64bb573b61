"""One replica on several ranks: processes that each compute their part of every forward (docs/adr/042).

Rank 0 is the process that schedules, scores and answers; the others, its followers, do what it says, call by call.
Knows runners and batches, but no requests.
"""
