"""Runs code that may hang or outgrow its memory in a process of its own, which the kernel ends if it must.

Knows nothing of what the jobs are: texts, conversations (`server.text`), constraints (`server.constraints`).
"""
