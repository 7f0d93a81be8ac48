"""What a Hugging Face Hub answers a client that lists and reads one data set: this much of its HTTP interface."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

DATASET = "someone/songs"


@contextmanager
def run_hub_server(files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve a data set's files on a free port.

    Args:
        files: Content by path.

    Yields:
        The endpoint, and the requests that it is asked, growing.
    """
    requests: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(f"{self.command} {self.path}")
            path = unquote(urlsplit(self.path).path)
            content = files.get(path.removeprefix(f"/datasets/{DATASET}/resolve/main/"))
            tree = f"/api/datasets/{DATASET}/tree/main"
            if path.startswith(tree):
                is_deep = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() == "true"
                self._answer_json(list_tree(files, path.removeprefix(tree).strip("/"), is_deep))
            elif content is not None:
                self._answer_range(content)
            elif path.startswith(f"/api/datasets/{DATASET}"):
                self._answer_json({"id": DATASET, "sha": "0" * 40, "siblings": [], "tags": []})
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            requests.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            is_json = "json" in self.headers["content-type"]
            asked = json.loads(body)["paths"] if is_json else parse_qs(body)["paths"]
            known = {entry["path"]: entry for entry in list_tree(files, "", True)}
            self._answer_json([known[path] for path in asked if path in known])

        def _answer_range(self, content: bytes) -> None:
            first, _, last = self.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last) + 1 if last else None]
            self.send_response(206)
            self.send_header("content-length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

        def _answer_json(self, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()


def list_tree(files: Mapping[str, bytes], folder: str, is_deep: bool) -> list[dict[str, Any]]:
    """List what lies in a folder, and in those below it if so wished."""
    entries: dict[str, dict[str, Any]] = {}
    for path, content in files.items():
        blob_id = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        entries[path] = {"type": "file", "oid": blob_id, "size": len(content), "path": path}
        for position in (place for place, letter in enumerate(path) if letter == "/"):
            entries[path[:position]] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": path[:position]}
    below = [path for path in entries if not folder or path.startswith(f"{folder}/")]
    return [entries[path] for path in below if is_deep or path.rpartition("/")[0] == folder]
