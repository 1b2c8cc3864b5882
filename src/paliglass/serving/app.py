"""The HTTP application: the routes, the guard before them, the health and the pages beside them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from paliglass import __version__
from paliglass.errors import PaliglassError
from paliglass.serving import moondream, openai, pages, responses
from paliglass.serving.calls import Service
from paliglass.serving.dual import Dual
from paliglass.serving.engine import Engine, Told, tell_at_once
from paliglass.serving.errors import ApiError, as_api_error
from paliglass.serving.http import ClientGoneError, Guard
from paliglass.serving.pictures import PictureReader
from paliglass.serving.settings import Settings

__all__ = ["create_app"]

STATUS = {"loading": 503, "ready": 200, "draining": 503, "dead": 503}


def create_app(
    engine: Engine, settings: Settings | None = None, dual: Dual | None = None
) -> FastAPI:
    """An application on an engine, which it starts and stops.

    dual: a `Dual`, for /v1/embeddings.
    """
    settings = settings or Settings()
    reader = PictureReader(settings)
    service = Service(settings, engine, reader, engine.metrics, dual, int(time.time()))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()

        def deliver(told: Sequence[Told]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(tell_at_once, told)

        engine.deliver = deliver
        engine.start()
        yield
        engine.stop()
        reader.close()
        if dual is not None:
            dual.close()

    app = FastAPI(
        title="paliglass",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(Guard, service=service)
    app.include_router(openai.router)
    app.include_router(responses.router)
    app.include_router(moondream.router)

    async def told(_: Request, error: Exception) -> Response:
        if isinstance(error, ClientGoneError):
            return Response(status_code=499)  # nobody reads it; the metrics do
        return as_api_error(error).response()

    async def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return ApiError(error.status_code, str(error.detail), headers=error.headers).response()

    kinds = (Exception, ApiError, ClientGoneError, PaliglassError, RequestValidationError)
    for kind in kinds:
        app.add_exception_handler(kind, told)
    app.add_exception_handler(HTTPException, http_error)

    @app.get("/health", tags=["Server"], response_model=None)
    async def health() -> Response:
        """200 where requests are answered; 503 while loading, at the end, or without a model."""
        return JSONResponse({"status": engine.state}, STATUS[engine.state])

    @app.get("/metrics", tags=["Server"], response_model=None)
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(engine.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(pages.docs(app.openapi()))

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> HTMLResponse:
        found = await reader.work(lambda: pages.index(settings.name))
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
            return HTMLResponse(found.zipped, headers=headers)
        return HTMLResponse(found.page, headers={"Vary": "Accept-Encoding"})

    @app.get("/lab/{name}", include_in_schema=False)
    async def lab(name: str, request: Request) -> Response:
        found = await reader.work(lambda: pages.index(settings.name))
        # The page asks for a piece by its checksum: what is kept under that address stays right,
        # and an old page is not sent what does not fit it.
        address = f"{name}?{request.url.query}"
        if address not in found.pieces:
            raise HTTPException(404)
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(
            found.pieces[address], media_type="application/octet-stream", headers=headers
        )

    return app
