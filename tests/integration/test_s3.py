"""The main job on real object storage: two credentials, a network that fails, a store that refuses."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable

from jobs import check_store, embed_catalog, maintain_store
from pipeline.config import DEFAULT_RESOLUTIONS
from pipeline.location import StoreLocation, delta_storage_options
from pipeline.store.maintain import delete_tracks, find_stored_ids, vacuum_store
from pipeline.store.read import FeatureStore
from pipeline.store.tables import open_table
from pipeline.store.writer import StoreWriter
from tests.corpus import encode_clip, load_music
from tests.fault_proxy import Fault, run_fault_proxy
from tests.processes import ROOT, Run, run_command
from tests.s3_server import (
    ADMIN,
    AUDIO,
    AUDIO_BUCKET,
    STORE,
    STORE_BUCKET,
    STORE_READER,
    Credential,
    S3Server,
)
from tests.stores import KnownStore

AUDIO_URL = f"s3://{AUDIO_BUCKET}/demo"
SECRETS = [text for credential in (AUDIO, STORE) for text in (credential.key, credential.secret)]
ENDINGS = ("wav", "mp3", "m4a", "flac", "ogg")

pytestmark = pytest.mark.slow


def as_flags(name: str, options: dict[str, str]) -> list[str]:
    return [f"{name}={key}={value}" for key, value in options.items()]


def run_job(arguments: Sequence[str], environment: dict[str, str]) -> Run:
    """Run the main command with nothing of S3 in its environment but what is given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return run_command("jobs/embed_catalog.py", *arguments, environment=clean | environment)


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    """Where the runs' Ray keeps its logs; its sockets need a short path."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> list[str]:
    return ["--checkpoint", str(tiny_checkpoint), "--layers", "2"]


@pytest.fixture(scope="module")
def audio(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Clips in their bucket, one of them empty."""
    folder = tmp_path_factory.mktemp("music")
    for ending in ENDINGS:
        encode_clip(folder / f"clip_{ending}.{ending}", load_music(seconds=3.0), 44_100)
    (folder / "empty [1].mp3").write_bytes(b"")
    s3_server.open(AUDIO).put(str(folder), f"{AUDIO_URL}/", recursive=True)
    return AUDIO_URL


@pytest.fixture(scope="module")
def undisturbed(s3_server: S3Server, audio: str, model: list[str], ray_folder: Path) -> tuple[StoreLocation, Run]:
    """A store that nothing went wrong with, and the run that made it."""
    store = StoreLocation(f"s3://{STORE_BUCKET}/undisturbed", s3_server.options(STORE))
    arguments = ["--audio", audio, "--store", store.url, *model]
    arguments += as_flags("--audio-option", s3_server.options(AUDIO))
    arguments += as_flags("--storage-option", s3_server.options(STORE))
    return store, run_job(arguments, {"RAY_TMPDIR": str(ray_folder)})


def read_features(store: StoreLocation) -> dict[str, Any]:
    """Return all that a store holds of its tracks, by resolution."""
    snapshot = FeatureStore(store.url, options=store.options)
    facts = ["track_id", "content_hash", "embedding"]
    frames = {name: snapshot.to_arrow(name).to_pylist() for name in DEFAULT_RESOLUTIONS if name != "global"}
    return {"global": snapshot.to_arrow("global").select(facts).to_pylist(), **frames}


def test_audio_and_store_in_two_buckets_with_two_credentials(
    undisturbed: tuple[StoreLocation, Run], s3_server: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    store, run = undisturbed
    assert run.exit_code == 0, run.stderr
    assert (run.report["embedded"], run.report["failures"]) == (len(ENDINGS), {"empty_file": 1})
    options = as_flags("--storage-option", s3_server.options(STORE))
    assert check_store.main(["--store", store.url, "--deep", *options]) == 0, capsys.readouterr().out


def test_no_secret_is_left_anywhere(
    undisturbed: tuple[StoreLocation, Run], s3_server: S3Server, ray_folder: Path
) -> None:
    store, run = undisturbed
    places = {"stdout": run.stdout.encode(), "stderr": run.stderr.encode()}
    places |= s3_server.read_all(STORE_BUCKET)
    places |= {str(path): path.read_bytes() for path in ray_folder.rglob("*") if path.is_file()}
    assert len(places) > 20
    for table_name in ("tracks", "frames", "failures", "recipes"):
        table = DeltaTable(store.table_url(table_name), storage_options=delta_storage_options(store.options))
        columns = [field.name for field in table.schema().fields if "embedding" not in field.name]
        places[table_name] = str(table.to_pyarrow_table(columns=columns).to_pylist()).encode()
    found = {name: text for name, content in places.items() for text in SECRETS if text.encode() in content}
    assert not found


def test_a_second_run_with_credentials_from_the_environment_embeds_nothing(
    undisturbed: tuple[StoreLocation, Run], s3_server: S3Server, audio: str, model: list[str]
) -> None:
    store, _ = undisturbed
    before = sorted(s3_server.open().glob(f"{store.url}/**/*.parquet"))
    environment = {
        "AWS_ACCESS_KEY_ID": STORE.key,
        "AWS_SECRET_ACCESS_KEY": STORE.secret,
        "AWS_ENDPOINT_URL": s3_server.url,
    }
    arguments = ["--audio", audio, "--store", store.url, *model]
    arguments += as_flags("--audio-option", {"key": AUDIO.key, "secret": AUDIO.secret})
    run = run_job(arguments, environment)
    assert run.exit_code == 0, run.stderr
    assert (run.report["embedded"], run.report["unchanged"], run.report["failed"]) == (0, len(ENDINGS), 1)
    assert sorted(s3_server.open().glob(f"{store.url}/**/*.parquet")) == before


def test_a_run_over_a_network_that_fails_ends_as_if_it_had_not(
    undisturbed: tuple[StoreLocation, Run],
    s3_server: S3Server,
    audio: str,
    model: list[str],
    tmp_path: Path,
) -> None:
    url = f"s3://{STORE_BUCKET}/disturbed"
    to_audio = run_fault_proxy(s3_server.url, tmp_path / "audio.log", rate=1.0, max_per_key=1)
    to_store = run_fault_proxy(s3_server.url, tmp_path / "store.log", rate=0.15)
    with to_audio as audio_proxy, to_store as store_proxy:
        arguments = ["--audio", audio, "--store", url, *model]
        arguments += as_flags("--audio-option", s3_server.options(AUDIO, audio_proxy.url))
        arguments += as_flags("--storage-option", s3_server.options(STORE, store_proxy.url))
        run = run_job(arguments, {})
    assert run.exit_code == 0, run.stderr
    assert run.report["failures"] == {"empty_file": 1}
    assert audio_proxy.count_faults().total() > len(ENDINGS)
    assert set(store_proxy.count_faults()) == set(Fault)
    assert read_features(StoreLocation(url, s3_server.options(STORE))) == read_features(undisturbed[0])


def test_a_run_that_is_killed_again_and_again_over_such_a_network_ends_as_if_it_had_not(
    undisturbed: tuple[StoreLocation, Run], s3_server: S3Server, audio: str, model: list[str], tmp_path: Path
) -> None:
    first_s = undisturbed[1].report["seconds"]
    url = f"s3://{STORE_BUCKET}/killed"
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    with run_fault_proxy(s3_server.url, tmp_path / "store.log", rate=0.1, seed=seed % 1000) as proxy:
        arguments = ["--audio", audio, "--store", url, *model, "--commit-interval-s", "0.2"]
        arguments += as_flags("--audio-option", s3_server.options(AUDIO))
        arguments += as_flags("--storage-option", s3_server.options(STORE, proxy.url))
        for _ in range(3):
            command = [sys.executable, "jobs/embed_catalog.py", *arguments]
            job = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            # Ray and torch take their time to start: what is to be broken comes after that.
            time.sleep(10 + moments.uniform(0, 1.5 * first_s))
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
        run = run_job(arguments, {})
    assert run.exit_code == 0, run.stderr
    assert run.report["embedded"] + run.report["unchanged"] == len(ENDINGS)
    store = StoreLocation(url, s3_server.options(STORE))
    assert read_features(store) == read_features(undisturbed[0])


def test_a_store_on_s3_is_refreshed_maintained_and_taken_down_like_any(s3_server: S3Server) -> None:
    store = StoreLocation(f"s3://{STORE_BUCKET}/kept", s3_server.options(STORE))
    known = KnownStore(store)
    contents = {f"t{number:03d}": f"content {number}" for number in range(40)}
    known.run(contents, tracks_per_part=10)
    parts = set(open_table(store, "frames").file_uris())
    del contents["t030"]
    known.run({**contents, "t007": "changed", "t100": "new"}, prune=True)
    assert parts < set(open_table(store, "frames").file_uris())
    options = as_flags("--storage-option", s3_server.options(STORE))
    assert maintain_store.main(["--store", store.url, "--vacuum", "0", "--dead-share", "0", *options]) == 0
    assert not find_stored_ids(store, ["t030"])
    snapshot = FeatureStore(store.url, options=store.options)
    for (_, resolution), expected in known.features.items():
        if resolution != "global":
            found = {row["track_id"]: row["embeddings"] for row in snapshot.to_arrow(resolution).to_pylist()}
            assert found.keys() == expected.keys()
            for track_id, matrix in expected.items():
                np.testing.assert_array_equal(np.array(found[track_id], np.float32), matrix)
    writer = StoreWriter(store, "take-down")
    assert delete_tracks(writer, ["t001"]) == 1
    vacuum_store(writer, 0)
    assert not find_stored_ids(store, ["t001"])
    assert check_store.main(["--store", store.url, "--deep", *options]) == 0


WRONG_SECRET = "5kT-wrong-secret-Xe4Np8"
REFUSALS = {
    "audio: wrong secret": (Credential(AUDIO.key, WRONG_SECRET), STORE, AUDIO_URL, "new"),
    "audio: unknown key": (Credential("AKIANOBODY", WRONG_SECRET), STORE, AUDIO_URL, "new"),
    "audio: another's credential": (STORE, STORE, AUDIO_URL, "new"),
    "audio: no such bucket": (ADMIN, STORE, "s3://no-such-bucket/demo", "new"),
    "audio: no such folder": (AUDIO, STORE, f"s3://{AUDIO_BUCKET}/no/such", "new"),
    "store: wrong secret": (AUDIO, Credential(STORE.key, WRONG_SECRET), AUDIO_URL, "undisturbed"),
    "store: unknown key": (AUDIO, Credential("AKIANOBODY", WRONG_SECRET), AUDIO_URL, "undisturbed"),
    "store: another's credential": (AUDIO, AUDIO, AUDIO_URL, "undisturbed"),
    "store: no such bucket": (AUDIO, ADMIN, AUDIO_URL, "../no-such-bucket/x"),
    "store: read only": (AUDIO, STORE_READER, AUDIO_URL, "undisturbed"),
    "store: read only and new": (AUDIO, STORE_READER, AUDIO_URL, "new"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_refused_is_one_clear_line(
    case: str,
    undisturbed: tuple[StoreLocation, Run],
    s3_server: S3Server,
    audio: str,
    model: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    audio_credential, store_credential, audio_url, name = REFUSALS[case]
    url = f"s3://{STORE_BUCKET}/{name}".replace(f"{STORE_BUCKET}/../", "")
    before = s3_server.read_all(STORE_BUCKET)
    arguments = ["--audio", audio_url, "--store", url, *model]
    arguments += as_flags("--audio-option", s3_server.options(audio_credential))
    arguments += as_flags("--storage-option", s3_server.options(store_credential))
    assert embed_catalog.main(arguments) == 2
    output = capfd.readouterr()
    assert [line for line in output.err.splitlines() if " error: " in line] == output.err.splitlines()[-1:]
    assert not any(text in output.err for text in (WRONG_SECRET, AUDIO.secret, STORE.secret, STORE_READER.secret))
    assert s3_server.read_all(STORE_BUCKET) == before


def test_a_point_read_makes_as_many_requests_in_a_large_store_as_in_a_small_one(
    s3_server: S3Server, tmp_path: Path
) -> None:
    num_requests = []
    for num_tracks in (20, 200):
        url = f"s3://{STORE_BUCKET}/of-{num_tracks}"
        known = KnownStore(StoreLocation(url, s3_server.options(STORE)))
        known.run({f"t{number:03d}": f"content {number}" for number in range(num_tracks)}, tracks_per_part=20)
        with run_fault_proxy(s3_server.url, tmp_path / f"{num_tracks}.log") as proxy:
            snapshot = FeatureStore(url, options=s3_server.options(STORE, proxy.url))
            num_to_open = len(proxy.read_requests())
            found = snapshot.frames(["t013"], "16hz")
            num_requests.append(len(proxy.read_requests()) - num_to_open)
        ((expected,),) = [[tracks["t013"] for (_, name), tracks in known.features.items() if name == "16hz"]]
        np.testing.assert_array_equal(np.array(found.column("embeddings")[0].as_py(), np.float32), expected)
    # Of the ledger's part and of the features': its length, its footer, one row group.
    assert num_requests[0] == num_requests[1] <= 6
