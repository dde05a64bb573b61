"""Questions whose answers are few and known: what the model thinks of each answer, by one forward over blanks.

Knows conversations, questions and tokens, but neither wire types nor HTTP.
"""
