"""Everything the engine raises on purpose.

UnmaskError
├── ConfigError             a setting or a combination of settings that cannot work; found at start-up
├── LoadError               the checkpoint cannot be served: missing folder, unknown family, bad tensor
│   └── CapacityError       it can be read, but the memory at hand cannot hold it and one canvas
├── InvalidRequest          this request can never be served; names the field at fault
│   └── ContextLengthExceeded
├── QueueFull               try again later: the bounded queue has no place
├── EngineUnavailable       stopped, stopping, or not started
├── RequestFailed           the engine failed while it served this request
└── DeviceLost              the device itself has failed; only a new process can go on

The server chooses HTTP statuses (`server/errors.py` maps this tree in one place).
"""


class UnmaskError(Exception):
    """Root of the tree; its text is meant for the user."""


class ConfigError(UnmaskError):
    """A setting, or a combination of settings, that cannot work."""


class LoadError(UnmaskError):
    """The checkpoint cannot be served."""


class CapacityError(LoadError):
    """The memory at hand cannot hold the model and one canvas."""


class InvalidRequest(UnmaskError):
    """This request can never be served. `param` is the field at fault, in the API's words (`diffusion.cache`)."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthExceeded(InvalidRequest):
    """Prompt and canvas together are longer than the model's context."""


class QueueFull(UnmaskError):
    """The bounded queue has no place for another request."""


class EngineUnavailable(UnmaskError):
    """The engine has stopped, is stopping, or has not started."""


class RequestFailed(UnmaskError):
    """The engine failed while it served this request; the cause is logged, not sent to clients."""


class DeviceLost(UnmaskError):
    """The device has failed in a way that outlasts the step. Ends the engine's thread; never reaches a client."""
