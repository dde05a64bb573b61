"""Engine outputs become text: detokenized blocks, stop strings, log-probabilities, choices.

Sees text and observers. The only wire format that it knows is that of log-probabilities: `server.protocols` writes the
answers.
"""
