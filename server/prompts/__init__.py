"""A request's body becomes what the engine is asked: prompts, conversations, holes, parameters.

Sees wire types and text. What is refused here names its field.
"""
