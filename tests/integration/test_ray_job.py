"""The same command on a cluster: `ray start --head`, then `ray job submit`."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.corpus import encode_clip, load_music
from tests.processes import find_free_ports

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "RAY_AUTH_MODE": "token",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def wait_for(url: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError:
            return  # it answers; it wants a token, which the command line brings along
        except OSError:
            pass
        time.sleep(0.3)
    raise TimeoutError(f"{url} did not answer within {timeout_s} s")


@pytest.fixture
def dashboard_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray head on this machine, ended with all that it started."""
    gcs, dashboard, client, agent = find_free_ports(4)
    temp = Path("/tmp") / f"ray-{os.getpid()}"  # Ray's sockets must have short paths
    command = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
    command += [
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}",
    ]
    command += [
        "--num-cpus=2",
        "--disable-usage-stats",
        f"--dashboard-agent-listen-port={agent}",
        f"--temp-dir={temp}",
    ]
    log = tmp_path_factory.mktemp("ray") / "head.log"
    with log.open("w") as output:
        head = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=ENVIRONMENT, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{dashboard}/api/version", 60)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        head.terminate()
        with suppress(subprocess.TimeoutExpired):
            head.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)


def test_the_same_command_under_ray_job_submit(dashboard_url: str, tmp_path: Path, tiny_checkpoint: Path) -> None:
    audio = tmp_path / "music"
    audio.mkdir()
    for ending in ("wav", "mp3", "m4a"):
        encode_clip(audio / f"clip_{ending}.{ending}", load_music(seconds=3.0, sample_rate=44_100), 44_100)
    (audio / "empty.mp3").write_bytes(b"")
    job = ["python", "jobs/embed_catalog.py", "--audio", str(audio), "--store", str(tmp_path / "store")]
    job += ["--checkpoint", str(tiny_checkpoint), "--layers", "2"]
    submit = [str(BIN / "ray"), "job", "submit", "--address", dashboard_url, "--working-dir", ".", "--", *job]
    deadline_s = time.monotonic() + 60
    while True:
        done = subprocess.run(
            submit, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False
        )
        # The head answers a moment before the agent that takes jobs has reported to it.
        if "No available agent" not in done.stderr or time.monotonic() > deadline_s:
            break
        time.sleep(1)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    report = json.loads(lines[-1])
    assert (report["planned"], report["embedded"], report["failed"]) == (4, 3, 1)
    check = [sys.executable, "jobs/check_store.py", "--store", str(tmp_path / "store")]
    assert subprocess.run(check, cwd=ROOT, capture_output=True, check=False).returncode == 0
