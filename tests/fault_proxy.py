"""A proxy that stands between a client and an S3 server and now and then fails, as networks and servers do.

It is a process of its own: some calls of delta-rs hold Python's global lock while they wait for an answer, which
a thread of the same process could then never give.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
STALL_S = 1.0
SLOW_DOWN_BODY = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
# Headers of one connection alone (RFC 9110, section 7.6.1), and those that are written anew.
OWN_HEADERS = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


class Fault(StrEnum):
    """What may become of a request."""

    SLOW_DOWN = "slow_down"  # 503; the server never sees the request
    RESET = "reset"  # the connection breaks; the server never sees the request
    STALL = "stall"  # silence, then the connection breaks; the server never sees the request
    LOST_ANSWER = "lost_answer"  # the server does what it is asked, then the connection breaks
    SHORT_BODY = "short_body"  # half of the answer's body, then an orderly end of the connection


@dataclass(frozen=True)
class Request:
    """One request as it came in, and what became of it.

    Args:
        method: Of HTTP.
        path: With its query.
        fault: None if it was let through.
    """

    method: str
    path: str
    fault: Fault | None = None


@dataclass(frozen=True)
class FaultProxy:
    """A proxy that runs.

    Args:
        url: Its endpoint.
        log: Where it writes down what it did.
    """

    url: str
    log: Path

    def read_requests(self) -> list[Request]:
        """Return all requests so far."""
        rows = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [Request(row["method"], row["path"], row["fault"] and Fault(row["fault"])) for row in rows]

    def count_faults(self) -> Counter[Fault]:
        """Return how many requests failed in each way."""
        return Counter(request.fault for request in self.read_requests() if request.fault)


@contextmanager
def run_fault_proxy(
    upstream: str,
    log: Path,
    rate: float = 0.0,
    kinds: Sequence[Fault] = tuple(Fault),
    seed: int = 0,
    max_per_key: int = 2,
) -> Iterator[FaultProxy]:
    """Run a proxy on a free port of this machine.

    Args:
        upstream: Endpoint of the server, such as ``http://127.0.0.1:8333``.
        log: Where to write down the requests.
        rate: Share of requests that fail.
        kinds: Ways to fail, taken in turn.
        seed: Of the choice which requests fail.
        max_per_key: How often requests of one method and path may fail; a retry is another such request.
    """
    command = [sys.executable, "-m", "tests.fault_proxy", upstream, str(log), str(rate), ",".join(kinds)]
    command += [str(seed), str(max_per_key)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield FaultProxy(process.stdout.readline().strip(), log)
    finally:
        process.kill()
        process.wait()


class FaultChooser:
    """Decides what becomes of each request, and writes it down."""

    def __init__(self, rate: float, kinds: Sequence[Fault], seed: int, max_per_key: int, log: TextIO) -> None:
        self.rate = rate
        self.kinds = deque(kinds)
        self.max_per_key = max_per_key
        self.log = log
        self._random = random.Random(seed)
        self._num_faults: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def choose(self, method: str, path: str) -> Fault | None:
        """Return the way in which a request is to fail, each way in its turn; None lets it through."""
        key = (method, path)
        with self._lock:
            possible = [kind for kind in self.kinds if kind != Fault.SHORT_BODY or method == "GET"]
            fails = self._num_faults[key] < self.max_per_key and self._random.random() < self.rate
            fault = possible[0] if fails and possible else None
            if fault:
                self._num_faults[key] += 1
                self.kinds.remove(fault)
                self.kinds.append(fault)
            print(json.dumps({"method": method, "path": path, "fault": fault}), file=self.log, flush=True)
            return fault


class Server(ThreadingHTTPServer):
    """The proxy, a thread a connection."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, upstream: str, chooser: FaultChooser) -> None:
        super().__init__(("127.0.0.1", 0), Relay)
        self.upstream = urlsplit(upstream).netloc
        self.chooser = chooser

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about clients that did not wait."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Relay(BaseHTTPRequestHandler):
    """One client's connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def relay(self) -> None:
        """Hand one request on and its answer back, or fail."""
        body = self._read_body()
        fault = self.server.chooser.choose(self.command, self.path)
        if fault == Fault.SLOW_DOWN:
            headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(SLOW_DOWN_BODY)))]
            self._answer(503, "Slow Down", headers, SLOW_DOWN_BODY)
            return
        if fault == Fault.STALL:
            time.sleep(STALL_S)
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
        """Keep quiet: the chooser writes down what was asked."""

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
        """Send the request on; the Host header stays the client's, which is part of what it signed."""
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in OWN_HEADERS:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            answer = response.read()
            headers = [(n, v) for n, v in response.getheaders() if n.lower() not in OWN_HEADERS]
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


def main() -> None:
    """Run a proxy until it is killed, and say on the first line where."""
    parser = argparse.ArgumentParser()
    for name, kind in (("upstream", str), ("log", Path), ("rate", float), ("kinds", str), ("seed", int)):
        parser.add_argument(name, type=kind)
    parser.add_argument("max_per_key", type=int)
    flags = parser.parse_args()
    kinds = [Fault(kind) for kind in flags.kinds.split(",")]
    with flags.log.open("w") as log:
        chooser = FaultChooser(flags.rate, kinds, flags.seed, flags.max_per_key, log)
        with Server(flags.upstream, chooser) as server:
            print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
            server.serve_forever()


if __name__ == "__main__":
    main()
