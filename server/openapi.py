"""The API's description of itself at /openapi.json, without what FastAPI says of every route and no route here does."""

from typing import Any

from fastapi import FastAPI


class Api(FastAPI):
    """FastAPI answers invalid requests with 422; here they are a 400 with OpenAI's error object (`server.errors`)."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            described = super().openapi()
            for path in described["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                described["components"]["schemas"].pop(name, None)
        assert self.openapi_schema is not None
        return self.openapi_schema
