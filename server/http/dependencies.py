"""What routes ask for before they run: the service, and a body that is JSON."""

from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request

from server.protocols.service import Service


async def service_of(request: Request) -> Service:
    # Async, like all dependencies here: FastAPI would run a plain function in a thread.
    service: Service = request.app.state.service
    return service


async def require_json(request: Request) -> None:
    """Raises HTTPException 415 for other content types, which a browser may post across origins without a preflight."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "The content type must be application/json.")


Shared = Annotated[Service, Depends(service_of)]
POSTS: dict[str, Any] = {"dependencies": [Depends(require_json)]}
"""Arguments of a route that reads a body."""
