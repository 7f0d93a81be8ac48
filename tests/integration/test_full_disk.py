"""A disk that fills up: one clear line, and the store stays as it was."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import check_store, embed_catalog
from pipeline.store.read import FeatureStore
from tests.corpus import encode_clip, load_music

pytestmark = pytest.mark.slow

FOR_COMMITS_BUT_NOT_FOR_FEATURES = 60_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"only root may mount a small disk, and not everywhere: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill_disk(filler: Path, left_bytes: int) -> None:
    filler.unlink(missing_ok=True)
    state = os.statvfs(filler.parent)
    filler.write_bytes(bytes(state.f_bavail * state.f_frsize - left_bytes))


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_full_disk_is_one_clear_line_and_leaves_the_store_sound(
    small_disk: Path, tmp_path: Path, tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    audio, store = tmp_path / "music", str(small_disk / "store")
    audio.mkdir()
    arguments = ["--audio", str(audio), "--store", store, "--checkpoint", str(tiny_checkpoint), "--layers", "2"]
    encode_clip(audio / "first.flac", load_music(seconds=2.0), 44_100)
    assert embed_catalog.main(arguments) == 0
    before = FeatureStore(store).to_arrow("16hz")
    encode_clip(audio / "second.flac", load_music(seconds=30.0), 44_100)
    for left_bytes, exit_code in ((0, 2), (FOR_COMMITS_BUT_NOT_FOR_FEATURES, 1)):
        fill_disk(small_disk / "filler", left_bytes)
        capfd.readouterr()
        assert embed_catalog.main(arguments) == exit_code
        (line,) = [
            line for line in capfd.readouterr().err.splitlines() if " error: " in line or "broke off: " in line
        ]
        assert "No space left on device" in line
        assert FeatureStore(store).to_arrow("16hz") == before
        assert check_store.main(["--store", store, "--deep"]) == 0
    (small_disk / "filler").unlink()
    assert embed_catalog.main(arguments) == 0
    assert FeatureStore(store).to_arrow("16hz").column("track_id").to_pylist() == ["first.flac", "second.flac"]
    assert check_store.main(["--store", store, "--deep"]) == 0
