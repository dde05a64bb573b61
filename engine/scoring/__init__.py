"""From the logits of target positions to proposals: tokens, how sure the model is of them, log-probabilities.

Sees `core` and `kernels`. Knows what policies need, not which policy asks. What requests ask to be changed in the
logits goes into `edits`, what is drawn from them into `sampling`, what is reported of them into `logprobs`.
"""
