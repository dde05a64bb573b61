"""A request: as it is submitted, and its state while it is decoded. Sees no step; `engine.core.steps` sees this."""
