"""JSON Schema to one automaton of JSON texts: properties in order, nesting bounded, white space by rule.

All that comes out is valid under the schema; not all that is valid can come out. A keyword that would have to be
enforced and is not is refused by name, with its place.
"""
