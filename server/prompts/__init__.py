"""Turns a request's body into engine inputs: prompts, conversations, holes, parameters.

Sees wire types and text. Errors raised here name the field at fault.
"""
