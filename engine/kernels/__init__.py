"""Operations that a forward spends its time in: attention over pages, products, rollouts, copies to the device.

Functions of tensors. Sees nothing of the engine but errors: no request, no policy, no model. The definition of
attention is `attention.attend_rows`; every other kernel is tested against it. A new kernel is a file here, with its
slow twin in the tests, and a name in `EngineConfig.attention`.
"""
