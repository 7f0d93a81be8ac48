"""A proxy that stands between a client and an S3 server and now and then fails, as networks and servers do."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

SLOW_DOWN_BODY = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
# Headers of one connection alone (RFC 9110, section 7.6.1), and those that are written anew.
_OWN_HEADERS = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


class Fault(StrEnum):
    """What may become of a request."""

    SLOW_DOWN = "slow_down"  # 503; the server never sees the request
    RESET = "reset"  # the connection breaks; the server never sees the request
    STALL = "stall"  # silence, then the connection breaks; the server never sees the request
    LOST_ANSWER = "lost_answer"  # the server does what it is asked, then the connection breaks
    SHORT_BODY = "short_body"  # half of the answer's body, then an orderly end of the connection


@dataclass(frozen=True)
class Request:
    """One request as it came in; the path has its query."""

    method: str
    path: str

    @property
    def key(self) -> tuple[str, str]:
        """What the request is about: a retry has the same."""
        return self.method, urlsplit(self.path).path


@dataclass
class FaultProxy:
    """What a running proxy is told to do, and what it did.

    Args:
        url: Its endpoint.
        upstream: Endpoint of the server behind it.
        rate: Share of requests that fail.
        kinds: Ways to fail.
        max_in_a_row: Faults on one method and path before one such request is let through.
        stall_s: Length of a silence.
        random: Makes the choices.
        faults: What failed how.
        requests: All requests.
    """

    url: str
    upstream: str
    rate: float = 0.0
    kinds: tuple[Fault, ...] = tuple(Fault)
    max_in_a_row: int = 2
    stall_s: float = 1.0
    random: random.Random = field(default_factory=lambda: random.Random(0))
    faults: list[tuple[Fault, Request]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._in_a_row: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._lock = threading.Lock()

    def choose_fault(self, request: Request) -> Fault | None:
        """Note a request and decide what becomes of it; None lets it through."""
        kinds = [kind for kind in self.kinds if kind != Fault.SHORT_BODY or request.method == "GET"]
        with self._lock:
            self.requests.append(request)
            fails = self.random.random() < self.rate and self._in_a_row[request.key] < self.max_in_a_row
            if not fails or not kinds:
                self._in_a_row[request.key] = 0
                return None
            self._in_a_row[request.key] += 1
            fault = self.random.choice(kinds)
            self.faults.append((fault, request))
            return fault

    def count_faults(self) -> Counter[Fault]:
        """Return how many requests failed in each way."""
        return Counter(fault for fault, _ in self.faults)

    def forget(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self.requests.clear()
            self.faults.clear()


@contextmanager
def run_fault_proxy(upstream: str, **settings: Any) -> Iterator[FaultProxy]:
    """Run a proxy on a free port of this machine.

    Args:
        upstream: Endpoint of the server, such as ``http://127.0.0.1:8333``.
        settings: Of ``FaultProxy``.
    """
    with _Server(("127.0.0.1", 0), _Relay) as server:
        server.proxy = FaultProxy(f"http://127.0.0.1:{server.server_address[1]}", upstream, **settings)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server.proxy
        finally:
            server.shutdown()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True
    proxy: FaultProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # those are clients that did not wait
            super().handle_error(request, client_address)


class _Relay(BaseHTTPRequestHandler):
    """One client's connection."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def relay(self) -> None:
        proxy = self.server.proxy
        body = self._read_body()
        fault = proxy.choose_fault(Request(self.command, self.path))
        if fault == Fault.SLOW_DOWN:
            headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(SLOW_DOWN_BODY)))]
            self._answer(503, "Slow Down", headers, SLOW_DOWN_BODY)
            return
        if fault == Fault.STALL:
            time.sleep(proxy.stall_s)
        if fault in (Fault.STALL, Fault.RESET):
            self._break_connection()
            return
        status, reason, headers, answer = self._ask_server(body)
        if fault == Fault.LOST_ANSWER:
            self._break_connection()
            return
        short = fault == Fault.SHORT_BODY
        self._answer(status, reason, headers, answer[: len(answer) // 2] if short else answer)
        self.close_connection |= short

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = relay  # noqa: N815 - the library's names

    def log_message(self, *args: Any) -> None:
        """Keep quiet: what was asked is in ``FaultProxy.requests``."""

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(chunks)

    def _ask_server(self, body: bytes) -> tuple[int, str, list[tuple[str, str]], bytes]:
        """Send the request on; the Host header stays the client's, which it has signed."""
        connection = http.client.HTTPConnection(urlsplit(self.server.proxy.upstream).netloc, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _OWN_HEADERS:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            answer = response.read()
            headers = [(n, v) for n, v in response.getheaders() if n.lower() not in _OWN_HEADERS]
            # The answer to HEAD has the length of a body that is not sent.
            length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(answer))
            headers += [("Content-Length", length)] if length is not None else []
            return response.status, response.reason, headers, answer
        finally:
            connection.close()

    def _answer(self, status: int, reason: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status, reason)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _break_connection(self) -> None:
        self.close_connection = True
        # No lingering: the client sees a reset, not an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
