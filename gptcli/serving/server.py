"""HTTP server of `gpt sample --serve`: the completions API, the list of models, and the page.

It listens on this machine only, unless another host is named, and then requires a key. On this
machine it answers only requests that name it as localhost, and takes only JSON, so that a page of
another site cannot use it through the reader's browser.

A request whose client hangs up is cancelled. Ctrl-C and SIGTERM end the process (`EndServer`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import importlib.util
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.errors import UsageError, install_hint
from gptcli.events import SILENT, Events
from gptcli.interrupts import Answer, leave
from gptcli.numbers import amount, counted
from gptcli.runs.svg import css_variables
from gptcli.sampling.defaults import MAX_TOKENS, TEMPERATURE, TOP_K
from gptcli.sampling.load import Loaded
from gptcli.serving.fields import ApiError, Json
from gptcli.serving.requests import (
    CompletionRequest,
    ServedModel,
    error_of,
    find_model,
    job_of,
    read_request,
    serve_names,
)
from gptcli.serving.responses import Stream, response
from gptcli.serving.scheduler import QueueFullError, Scheduler
from gptcli.toml_json import dumps

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    Endpoint = Callable[[Request], Awaitable[Response]]

MAX_BODY = 16 << 20
# Of a larger body, as much is read and dropped before the answer: a client that is still sending
# would not see the answer, but a reset connection.
MAX_DROPPED = 512 << 20
"""Bytes of a request."""
BACKLOG = 2048
"""Connections that the system holds until they are accepted."""
RETRY_AFTER_S = 1
"""Seconds after which a client should try again if the queue is full."""
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
"""Names by which a browser on this machine reaches a server that listens on it alone."""
PAGE_DEFAULTS = {"temperature": TEMPERATURE, "top_k": TOP_K, "top_p": 1, "max_tokens": MAX_TOKENS}
"""Values of the page's settings at first, by their field of a request."""
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def require_server() -> None:
    """Raise UsageError if the server's libraries are not installed."""
    if missing := [name for name in ("starlette", "uvicorn") if not _is_installed(name)]:
        raise UsageError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            where="{option:serve}",
            hint=install_hint("gptcli[serve]"),
        )


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a server that listens on `host`."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host` and `port`, or any free port for 0.

    Raises UsageError if that is not possible.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise UsageError(
            f"there is no such host as {host!r}",
            field="host",
            hint="name an address of this machine, or 0.0.0.0 for all of them",
        ) from None
    try:
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"port {port} of {host} is in use by another program",
                field="port",
                hint=f"choose another: {{option:port}} {port + 1 if port < 65535 else 8000}",
            ) from None
        if error.errno == errno.EACCES:
            raise UsageError(
                f"this user may not use port {port}",
                field="port",
                hint="choose one above 1023",
            ) from None
        raise UsageError(
            f"cannot listen on {host}: {(error.strerror or str(error)).lower()}", field="host"
        ) from None


class EndServer(Answer):
    """End a server at once: its only end, and so a success (exit code 0), unless it cuts requests
    off.
    """

    def __init__(self, scheduler: Scheduler, last_words: str) -> None:
        """Print `last_words` if no request is cut off."""
        self.scheduler, self.last_words = scheduler, last_words

    def act(self, number: int) -> None:
        """Run in the signal thread, once per signal."""
        if count := self.scheduler.requests:
            leave(
                f"gpt: interrupted before the answer to {counted(count, 'request')} was complete\n"
            )
        leave(self.last_words, 0)


def serve(
    models: Sequence[tuple[Path, Loaded]],
    listening: socket.socket,
    *,
    batch_size: int = 16,
    api_key: str | None = None,
    events: Events = SILENT,
    on_ready: Callable[[str], None] = lambda address: None,
    last_words: str = "",
) -> None:
    """Serve the models, each given with its folder, on a listening socket until the process ends.

    `on_ready` is called with the address once requests are taken; `last_words` are printed when a
    signal ends a server that has answered every request. Raises RunError if a cache does not fit
    into memory.
    """
    import uvicorn

    _allow_many_files()
    named = serve_names(models)
    scheduler = Scheduler([one.loaded for one in named], batch_size=batch_size, events=events)
    scheduler.start()
    host, port = listening.getsockname()[:2]
    local = is_loopback(host)
    for one in named:
        shape = one.loaded.model.config
        events.info(
            f"{one.id}: {counted(shape.parameters, 'parameter', amount)}, context {shape.n_ctx:,}, "
            f"{one.loaded.precision} on {one.loaded.device}"
        )
    if len({one.loaded.tokenizer.sha256 for one in named}) > 1:
        events.warn(
            "the models have different tokenizers: token ids, probabilities of a token and numbers "
            "of tokens cannot be compared between them"
        )
    for name in ("uvicorn", "uvicorn.error", "asyncio"):
        # errors are answered and reported here; a client's broken request is not the operator's
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False

    class Server(uvicorn.Server):
        """A server that leaves signals to `gptcli.interrupts`."""

        @contextlib.contextmanager
        def capture_signals(self) -> Any:
            yield

    config = uvicorn.Config(
        application(named, scheduler, api_key=api_key, local_only=local, events=events),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        backlog=BACKLOG,
    )
    shown = f"[{host}]" if ":" in host else host
    key = "" if api_key is None else ", with the key"
    with EndServer(scheduler, last_words):
        on_ready(f"http://{shown}:{port}")
        events.info(f"ready: open this address in a browser{key}; Ctrl-C ends the server")
        Server(config).run(sockets=[listening])


def _allow_many_files() -> None:
    """Raise this process's limit of open files, of which each connection is one."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # none on Windows
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def page() -> str:
    """Return the page, with the colors of the reports and the defaults of `gpt sample`."""
    text = resources.files("gptcli.serving").joinpath("page.html").read_text(encoding="utf-8")
    for place, shade in (("/*LIGHT*/", 0), ("/*DARK*/", 1)):
        text = text.replace(place, css_variables(shade))
    return text.replace("/*DEFAULTS*/", dumps(PAGE_DEFAULTS))


def application(
    models: Sequence[ServedModel],
    scheduler: Scheduler,
    *,
    api_key: str | None = None,
    local_only: bool = True,
    events: Events = SILENT,
) -> Starlette:
    """Return the ASGI application. `local_only` refuses requests to another name than localhost."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.responses import HTMLResponse, JSONResponse, StreamingResponse
    from starlette.responses import Response as Empty
    from starlette.routing import Route

    html = page()

    def failed(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
        return JSONResponse(error.as_dict(), status_code=error.status, headers=headers)

    def check_host(request: Request) -> None:
        name = request.url.hostname or ""
        if local_only and api_key is None and name not in LOCAL_NAMES:
            raise ApiError(
                "this server answers only requests to localhost", status=403, code="wrong_host"
            )

    def check_key(request: Request) -> None:
        if api_key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # starlette reads the bytes of a header as latin-1
        right = hmac.compare_digest(given.strip().encode("latin-1"), api_key.encode())
        if scheme.lower() != "bearer" or not right:
            raise ApiError(
                f"{'the key is wrong' if given else 'a key is needed'}: send the header "
                '"Authorization: Bearer KEY" with the key that the server was started with',
                status=401,
                code="invalid_api_key",
            )

    def guarded(endpoint: Endpoint, *, open_to_all: bool = False) -> Endpoint:
        """Return the endpoint with its checks; errors become responses."""

        async def answer(request: Request) -> Response:
            try:
                check_host(request)
                if not open_to_all:
                    check_key(request)
                return await endpoint(request)
            except ApiError as error:
                return failed(error)
            except QueueFullError as error:
                busy = ApiError(str(error), status=503, code="queue_full")
                return failed(busy, {"Retry-After": str(RETRY_AFTER_S)})
            except ClientDisconnect:
                return Empty(status_code=499)  # nobody reads it
            except Exception as error:
                events.warn(f"a request has failed: {type(error).__name__}: {error}")
                return failed(error_of(error))

        return answer

    async def show_page(request: Request) -> Response:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return HTMLResponse(html, headers=headers)

    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [one.as_dict() for one in models]})

    async def show_model(request: Request) -> Response:
        return JSONResponse(models[find_model(models, request.path_params["name"])].as_dict())

    async def complete(request: Request) -> Response:
        body = await _body(request)
        # a long prompt takes time to encode
        checked = await asyncio.to_thread(read_request, body, models)
        job = job_of(checked)
        scheduler.submit(job, checked.model)
        if checked.stream:
            return StreamingResponse(stream(checked, job), media_type="text/event-stream")
        gone = asyncio.ensure_future(_disconnected(request))
        finished = asyncio.ensure_future(job.finished())
        try:
            await asyncio.wait({gone, finished}, return_when=asyncio.FIRST_COMPLETED)
            if not job.done:
                raise ClientDisconnect
        finally:
            gone.cancel()
            finished.cancel()
            scheduler.cancel(job)
        if job.error is not None:
            return failed(error_of(job.error))
        return JSONResponse(response(checked))

    async def stream(checked: CompletionRequest, job: Any) -> AsyncIterator[str]:
        chunks = Stream(checked)
        try:
            while True:
                done = job.done
                if job.error is not None:
                    yield _event(error_of(job.error).as_dict())
                    return
                for chunk in chunks.chunks():
                    yield _event(chunk)
                if done:
                    yield "data: [DONE]\n\n"
                    return
                await job.event.wait()
                job.event.clear()
        finally:  # the client may have gone
            scheduler.cancel(job)

    async def refused(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        method, path = request.method, request.url.path
        path = path if len(path) <= 80 else f"{path[:80]}…"
        if status == 405:
            return failed(ApiError(f"{path} does not take {method}", status=405))
        hint = "/v1/completions and /v1/models are there"
        if "chat" in path or "responses" in path:
            hint = "these models continue a text and do not chat: use /v1/completions"
        return failed(ApiError(f"there is no {path} here; {hint}", status=404, code="not_found"))

    return Starlette(
        routes=[
            Route("/", guarded(show_page, open_to_all=True)),
            Route("/v1/models", guarded(list_models)),
            Route("/v1/models/{name:path}", guarded(show_model)),
            Route("/v1/completions", guarded(complete), methods=["POST"]),
        ],
        exception_handlers={HTTPException: refused},
    )


def _event(value: Json) -> str:
    return f"data: {dumps(value)}\n\n"


async def _body(request: Request) -> bytes:
    """Return the body of a request. Raises ApiError if it is not JSON by its header, or too large."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            f'the body is {kind or "of no type"}: send JSON with the header "Content-Type: '
            'application/json"',
            status=415,
        )
    too_large = ApiError(f"the request is larger than {MAX_BODY >> 20} MB", status=413)
    declared = request.headers.get("content-length", "")
    waits = request.headers.get("expect", "").lower() == "100-continue"
    if waits and declared.isdecimal() and int(declared) > MAX_BODY:
        raise too_large  # the client asked before it sends
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size <= MAX_BODY:
            parts.append(part)
        elif size > MAX_DROPPED:
            break
        else:
            parts.clear()
    if size > MAX_BODY:
        raise too_large
    return b"".join(parts)


async def _disconnected(request: Request) -> None:
    """Wait until the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
