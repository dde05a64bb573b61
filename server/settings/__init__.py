"""The settings and their sources: defaults, one YAML file, `UNMASK_*` variables, flags.

Sees the engine's own settings and `server.arguments`. A new setting is a field of `tree.ServerConfig` with its text and
bounds; the flag, the variable and the documentation follow from it.
"""
