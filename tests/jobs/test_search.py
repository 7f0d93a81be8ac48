import json
from pathlib import Path

import numpy as np
import pytest

from jobs import search
from pipeline.location import StoreLocation
from tests.corpus import MUSIC
from tests.encoders import encode_bytes
from tests.processes import run_command
from tests.s3_server import AUDIO, AUDIO_BUCKET, STORE, STORE_BUCKET, S3Server
from tests.served import TRACKS, build_indexes, embed_here, make_catalog

NAMES = ("caves", "caves-later", "crossroads", "desert", "palace")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> str:
    location = StoreLocation(str(tmp_path_factory.mktemp("search") / "store"))
    embed_here(location, make_catalog([t for t in TRACKS if t["track_id"] in NAMES]), tiny_checkpoint)
    build_indexes(location)
    return location.url


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command in this process: exit code, standard output and error."""
    try:
        code = search.main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_json_stands_alone(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = run(capsys, "--store", store, "--track", "caves", "-k", "3", "--json")
    assert code == 0
    line = json.loads(output)
    assert line["query"]["track_id"] == "caves"
    results = line["results"]
    assert [hit["rank"] for hit in results] == [1, 2, 3]
    assert "caves" not in [hit["track_id"] for hit in results]
    scores = [hit["score"] for hit in results]
    assert scores == sorted(scores, reverse=True)
    assert all(isinstance(hit["near_duplicate"], bool) and hit["start_s"] is None for hit in results)


def test_a_process_prints_json_alone_and_says_nothing_else_but_its_first_words(store: str) -> None:
    done = run_command("-m", "jobs", "search", "--store", store, "--track", "caves", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["results"]
    assert done.stderr == "musicfm search: loading the index\n"


def test_the_table_names_tracks_and_artists(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = run(capsys, "--store", store, "--track", "desert")
    assert code == 0
    header, first, *_ = output.splitlines()
    assert header.split() == ["rank", "score", "span", "track", "artist", "title", "album", "genre"]
    assert first.split()[0] == "1"
    assert "Caves (Later)" in output
    assert "Désert" not in output


@pytest.mark.parametrize("spelling", ["--start-s", "--start_s"])
def test_a_section_finds_spans(store: str, capsys: pytest.CaptureFixture[str], spelling: str) -> None:
    end = spelling.replace("start", "end")
    section = ("--store", store, "--track", "caves", spelling, "4", end, "9", "--resolution", "0.5hz")
    code, output, _ = run(capsys, *section)
    assert code == 0
    assert " s " in output.splitlines()[1]
    code, output, _ = run(capsys, *section, "--json")
    assert code == 0
    line = json.loads(output)
    assert (line["query"]["start_s"], line["query"]["end_s"]) == (4.0, 9.0)
    assert all(hit["end_s"] > hit["start_s"] >= 0 for hit in line["results"])


def test_filters_and_exclusions(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = ("--store", store, "--track", "caves", "--json")
    _, output, _ = run(capsys, *base, "--filter", "artist != 'Shawn Parrotte'")
    others = {hit["track_id"] for hit in json.loads(output.splitlines()[-1])["results"]}
    assert others == {"palace"}
    _, output, _ = run(capsys, *base, "--exclude-same", "artist")
    assert {hit["track_id"] for hit in json.loads(output.splitlines()[-1])["results"]} == others
    _, output, _ = run(capsys, *base[:-1], "--filter", "title = 'none'")
    assert "no hits" in output


@pytest.mark.parametrize("resolution", ["global", "0.5hz"])
def test_a_file_of_the_catalog_finds_itself(
    store: str, capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, resolution: str
) -> None:
    path = str(MUSIC / "palace.m4a")
    query = ["--store", store, "--audio", path, "--checkpoint", str(tiny_checkpoint)]
    query += ["--resolution", resolution, "--device", "cpu"]
    code, output, _ = run(capsys, *query, "--json")
    assert code == 0
    line = json.loads(output)
    assert line["query"]["audio"] == path
    best = line["results"][0]
    assert best["track_id"] == "palace"
    assert best["score"] == pytest.approx(1, abs=2e-3)
    assert best["near_duplicate"]
    _, output, _ = run(capsys, *query)
    assert "= likely the same recording" in output


def test_several_tracks_minus_another(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--store", store, "--track", "caves", "crossroads", "--minus", "desert", "--json")
    code, output, _ = run(capsys, *arguments)
    assert code == 0
    line = json.loads(output)
    assert line["query"]["track_ids"] == ["caves", "crossroads"]
    assert line["query"]["minus"] == ["desert"]
    assert {hit["track_id"] for hit in line["results"]} == {"caves-later", "palace"}


def test_many_files_are_searched_by_in_one_start_and_a_bad_one_is_passed_over(
    store: str, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = tmp_path / "noise.mp3"
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    files = [str(MUSIC / "palace.m4a"), str(noise), str(tmp_path / "gone.mp3"), str(MUSIC / "crossroads.wav")]
    query = ["--store", store, "--checkpoint", str(tiny_checkpoint), "--device", "cpu", "--audio", *files]
    code, output, _ = run(capsys, *query, "--end-s", "6", "-k", "1", "--json")
    lines = [json.loads(line) for line in output.splitlines()]
    assert code == 1
    assert [line["query"]["audio"] for line in lines] == files
    assert lines[0]["query"]["end_s"] == 6
    assert [len(line.get("results", ())) for line in lines] == [1, 0, 0, 1]
    assert [files[1] in lines[1]["error"], files[2] in lines[2]["error"]] == [True, True]
    code, output, _ = run(capsys, *query, "-k", "1")
    assert [line for line in output.splitlines() if line.endswith(":")] == [f"{files[0]}:", f"{files[3]}:"]


def test_a_threshold_may_be_given(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, output, _ = run(capsys, "--store", store, "--track", "caves", "--near-duplicate-score", "-1", "--json")
    assert all(hit["near_duplicate"] for hit in json.loads(output.splitlines()[-1])["results"])


def test_mistakes_exit_with_two_and_one_line(
    store: str, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = tmp_path / "noise.mp3"
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    short = tmp_path / "short.wav"
    short.write_bytes(encode_bytes(np.full((100, 1), 0.5), 24_000, format="WAV"))
    other = str(MUSIC.parent / "musicfm_nano.pt")
    by_audio = ("--store", store, "--checkpoint", str(tiny_checkpoint), "--audio")
    mistakes = {
        ("--store", store): "one of the arguments --track --audio is required",
        ("--store", store, "--track", "nobody"): "no track 'nobody'",
        ("--store", store, "--track", "caves", "-k", "0"): "expected 1 or more",
        ("--store", store, "--track", "caves", "--filter", "tempo > 1999"): "tempo",
        ("--store", store, "--track", "caves", "--resolution", "9hz"): "no index for resolution 9hz",
        ("--store", str(tmp_path), "--track", "caves"): "musicfm index",
        ("--store", store, "--audio", str(noise)): "--audio needs --checkpoint",
        (*by_audio, str(noise)): f"cannot search by {noise}",
        (*by_audio, str(short)): "expected at least 43 ms of music",
        (*by_audio, str(tmp_path / "missing.mp3")): "found nothing",
        (*by_audio, str(noise), "--minus", "caves"): "--minus: only with --track",
        (*by_audio, str(MUSIC / "palace.m4a"), "--start-s", "3000"): "expected a section within its",
        ("--store", store, "--track", "caves", "desert", "--start-s", "3"): "a section is of one --track",
        ("--store", store, "--track", "caves", "desert", "--resolution", "0.5hz"): "--resolution global",
        ("--store", store, "--audio", str(noise), "--checkpoint", other): "expected the checkpoint that the index",
        ("--store", store, "--audio", str(noise), "--checkpoint", str(noise)): "noise.mp3",
    }
    for arguments, message in mistakes.items():
        code, output, error = run(capsys, *arguments)
        assert code == 2, arguments
        assert output == ""
        assert message in error
        assert len(error.splitlines()) == 1


def test_a_store_and_a_file_in_object_storage(
    s3_server: S3Server, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location = StoreLocation(f"s3://{STORE_BUCKET}/searched-{tmp_path.name}", s3_server.options(STORE))
    embed_here(location, make_catalog([t for t in TRACKS if t["track_id"] in NAMES[:3]]), tiny_checkpoint)
    cache = str(tmp_path / "cache")
    build_indexes(location, cache)
    clip = f"s3://{AUDIO_BUCKET}/searched-{tmp_path.name}.mp3"
    s3_server.open(AUDIO).put(str(MUSIC / "caves.mp3"), clip)
    base = ["--store", location.url, "--cache", cache, "--json"]
    base += [item for pair in s3_server.options(STORE).items() for item in ("--storage-option", "=".join(pair))]
    audio = [item for pair in s3_server.options(AUDIO).items() for item in ("--audio-option", "=".join(pair))]
    code, output, error = run(capsys, *base, "--audio", clip, "--checkpoint", str(tiny_checkpoint), *audio)
    assert code == 0, error
    assert json.loads(output.splitlines()[-1])["results"][0]["track_id"] == "caves"
    code, output, error = run(capsys, *base, "--track", "caves", "--start-s", "3", "--end-s", "8")
    assert code == 0, error
    assert {hit["track_id"] for hit in json.loads(output.splitlines()[-1])["results"]} == set(NAMES[1:3])
