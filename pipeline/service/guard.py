"""What stands before every request: who may ask, how much may be sent, what browsers are told, what is counted."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess, values
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/", "/health", "/docs", "/openapi.json"})
PAGE_PREFIX = "/page/"  # the page's own files: public code, no data
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
SIGNATURE_LIFETIME_S = 6 * 3600.0

_FORM_OVERHEAD_BYTES = 16 * 2**10  # a multipart form's boundaries and headers around the file

_SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Args:
        token: Bearer token that every request but those for ``OPEN_PATHS`` must carry; None for no such thing.
        is_local: The service listens on this machine alone. Without a token it then answers only requests for a
            name of this machine: a web site elsewhere could else have its own name point here, and read along.
    """

    token: str | None = field(default=None, repr=False)
    is_local: bool = False

    def refuse(self, scope: Scope) -> HTTPException | None:
        """Return why a request is refused, or None."""
        headers = Headers(scope=scope)
        if self.token is None:
            host = headers.get("host", "").lower()
            name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
            if self.is_local and name not in LOOPBACK_HOSTS:
                return HTTPException(421, f"this service answers for {', '.join(sorted(LOOPBACK_HOSTS))} only")
            return None
        path = scope["path"]
        if path in OPEN_PATHS or path.startswith(PAGE_PREFIX) or self._is_signed(scope):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.token.encode()):
            return None
        return HTTPException(401, "expected the service's token, as 'Authorization: Bearer …'")

    def sign(self, path: str, now_s: float | None = None) -> str:
        """Return a path, percent-encoded, with what lets a media element fetch it for some hours.

        Such an element cannot send a header, and the token itself belongs in no address.
        """
        if self.token is None:
            return quote(path)
        expires = str(int((time.time() if now_s is None else now_s) + SIGNATURE_LIFETIME_S))
        return f"{quote(path)}?expires={expires}&signature={self._compute_signature(path, expires)}"

    def _is_signed(self, scope: Scope) -> bool:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        expires, signature = (query.get(name, [""])[0] for name in ("expires", "signature"))
        if scope["method"] not in ("GET", "HEAD") or not expires.isascii() or not expires.isdigit():
            return False
        expected = self._compute_signature(scope["path"], expires)
        return hmac.compare_digest(signature.encode(), expected.encode()) and time.time() < int(expires[:12])

    def _compute_signature(self, path: str, expires: str) -> str:
        assert self.token is not None
        message = f"{expires}\0{path}".encode()
        return hmac.new(self.token.encode(), message, hashlib.sha256).hexdigest()


class Metrics:
    """What Prometheus is told. Under several processes they share files in ``PROMETHEUS_MULTIPROC_DIR``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("musicfm_requests", "Requests answered", ["route", "status"], **own)
        buckets = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
        self.seconds = Histogram(
            "musicfm_request_seconds", "Time to the end of the answer", ["route"], buckets=buckets, **own
        )
        self.failed_uploads = Counter("musicfm_failed_uploads", "Uploads not embedded", ["reason"], **own)
        self.swaps = Counter("musicfm_index_swaps", "Times that a newer index took over", ["resolution"], **own)
        self.failed_swaps = Counter(
            "musicfm_index_failed_swaps", "Times that a newer index could not be opened", ["resolution"], **own
        )
        latest: dict[str, Any] = own | {"multiprocess_mode": "mostrecent"}
        self.tracks = Gauge("musicfm_index_tracks", "Tracks of the index", ["resolution"], **latest)
        self.store_version = Gauge(
            "musicfm_index_store_version",
            "Version of the tracks that the index was made from",
            ["resolution"],
            **latest,
        )

    def render(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        if values.ValueClass is values.MutexValue:
            return generate_latest(self.registry)
        shared = CollectorRegistry()
        multiprocess.MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return generate_latest(shared)


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: The application.
        access: Who may ask.
        metrics: Where requests are counted.
        max_upload_bytes: A longer body is cut off, and answered with 413.
    """

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics, max_upload_bytes: int) -> None:
        self.app = app
        self.access = access
        self.metrics = metrics
        self.max_body_bytes = max_upload_bytes + _FORM_OVERHEAD_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_s, status = time.perf_counter(), 500

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            refusal = self.access.refuse(scope) or self._refuse_length(scope)
            if refusal is not None:
                await _answer(refusal, scope, receive, send_guarded)
            else:
                await self.app(scope, self._limit(receive), send_guarded)
        finally:
            route = _name_route(scope)
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started_s)

    def _refuse_length(self, scope: Scope) -> HTTPException | None:
        """Refuse a body whose stated length is too much, before any of it is read."""
        stated = Headers(scope=scope).get("content-length", "0")
        if not (stated.isascii() and stated.isdigit()):
            return HTTPException(400, "expected a number of bytes as Content-Length")
        return self._too_large() if int(stated[:18]) > self.max_body_bytes else None

    def _limit(self, receive: Receive) -> Receive:
        """Count a body that does not state its length, and cut it off."""
        num_bytes = 0

        async def receive_limited() -> MutableMapping[str, Any]:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_body_bytes:
                raise self._too_large()
            return message

        return receive_limited

    def _too_large(self) -> HTTPException:
        most = (self.max_body_bytes - _FORM_OVERHEAD_BYTES) / 2**20
        return HTTPException(413, f"expected a file of at most {most:g} MiB", {"connection": "close"})


async def _answer(error: HTTPException, scope: Scope, receive: Receive, send: Send) -> None:
    headers = dict(error.headers or {})
    if error.status_code == 401:
        headers["www-authenticate"] = "Bearer"
    await JSONResponse({"detail": error.detail}, error.status_code, headers)(scope, receive, send)


def _name_route(scope: Scope) -> str:
    """Return the pattern that a request met: ids as labels would be as many series."""
    return str(getattr(scope.get("route"), "path", "none"))
