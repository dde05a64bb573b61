"""What the engine says becomes text: detokenized blocks, stop strings, log-probabilities, choices.

Sees text and observers. Knows no wire format but that of log-probabilities: `server.protocols` writes the answers.
"""
