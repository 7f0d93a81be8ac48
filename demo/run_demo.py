"""The main job on a dozen real clips, then a first look at the store with DuckDB.

Run it with ``make demo``. The model, musicfm-nano, is small enough to ship with the code; what it is good for is
in ``demo/musicfm_nano.md``. Every line of SQL works on a store of the published model.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
from deltalake import DeltaTable

ROOT = Path(__file__).resolve().parents[1]
MUSIC = ROOT / "demo" / "music"
STORE = ROOT / "demo" / "store"
CHECKPOINT = "demo/musicfm_nano.pt"
LAYER = 2  # what the model card says to store
FIGURE = (
    "(Of 184 tracks it was not trained on, 79 % find another excerpt of themselves first: demo/musicfm_nano.md)"
)


def main() -> int:
    """Embed, then query; return the exit code of the job, or of its books."""
    shutil.rmtree(STORE, ignore_errors=True)
    report = embed()
    connection = open_store()
    show_tables()
    show(connection, "What could not be embedded, and why", FAILURES)
    show(connection, "What the ledger knows of each track", TRACKS)
    show(connection, "Features by resolution: live rows, frames, vector length", RESOLUTIONS)
    show_matrix(connection)
    show(
        connection,
        f"Nearest neighbours of 'caves.mp3' by exact cosine; 'caves-later' goes on with it. {FIGURE}",
        NEIGHBOURS,
    )
    print("\nThe same from an index, and the moments that are nearest to five seconds of it")
    for resolution in ("global", "0.5hz"):
        run("jobs/build_index.py", "--store", "demo/store", "--resolution", resolution)
    run("jobs/search.py", "--store", "demo/store", "--track", "caves.mp3", "-k", "5")
    passage = ("--start-s", "10", "--end-s", "15", "--resolution", "0.5hz")
    run("jobs/search.py", "--store", "demo/store", "--track", "caves.mp3", "-k", "5", *passage)
    print(
        "\nWhat a file sounds like: here a later stretch of 'caves.mp3', which finds itself and then 'caves.mp3'"
    )
    clip = ("--audio", "demo/music/caves-later.ogg", "--checkpoint", CHECKPOINT)
    run("jobs/search.py", "--store", "demo/store", "-k", "5", *clip)
    outcomes = ("embedded", "unchanged", "failed", "withheld")
    closes = report["planned"] == sum(report[outcome] for outcome in outcomes)
    print(f"\nThe books close: {report['planned']} planned = {report['embedded']} embedded + ", end="")
    print(f"{report['unchanged']} unchanged + {report['failed']} failed. The store is at demo/store.")
    print("Search it by ear: .venv/bin/musicfm serve --store demo/store, then http://127.0.0.1:8000")
    print("Run it on your own music: .venv/bin/musicfm embed --audio DIR --store DIR --checkpoint msd")
    return 0 if closes else 1


def embed() -> dict[str, int]:
    """Run the job as a user would, and return its last line."""
    model = ("--checkpoint", CHECKPOINT, "--layer", str(LAYER))
    output = run("jobs/embed_catalog.py", "--audio", "demo/music", "--store", "demo/store", *model)
    report: dict[str, int] = json.loads(output.splitlines()[-1])
    return report


def run(*arguments: str) -> str:
    """Run a command as a user would, and return what it prints; the demo ends where it fails."""
    print(f"$ python {' '.join(arguments)}\n", flush=True)
    command = [sys.executable, *arguments]
    job = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    print(job.stdout)
    if job.returncode != 0:
        sys.exit(job.returncode)
    return job.stdout


def open_store() -> duckdb.DuckDBPyConnection:
    """Return a DuckDB connection with a view of each table: the files of the newest commit, read in place."""
    connection = duckdb.connect()
    for name in ("tracks", "frames", "failures"):
        files = DeltaTable(STORE / name).file_uris()
        if files:
            connection.read_parquet(files, hive_partitioning=True).create_view(name)
    return connection


def show_tables() -> None:
    """Print each table's rows and bytes on disk."""
    print("The store's tables, in Delta Lake")
    for name in ("tracks", "frames", "failures", "recipes", "withheld"):
        table = DeltaTable(STORE / name)
        num_bytes = sum(path.stat().st_size for path in (STORE / name).rglob("*.parquet"))
        print(f"  {name:<9} {table.count():>4} rows  {num_bytes / 1e6:6.2f} MB  version {table.version()}")


def show(connection: duckdb.DuckDBPyConnection, title: str, sql: str) -> None:
    """Print a title and the result of a query."""
    print(f"\n{title}")
    connection.sql(sql).show(max_width=110)


def show_matrix(connection: duckdb.DuckDBPyConnection) -> None:
    """Print the shape of one track's 16 Hz features."""
    row = connection.sql(MATRIX).fetchall()[0]
    print(f"\n16 Hz features of 'caves.mp3': {row[0]} frames x {row[1]} dimensions; the first: {row[2]} ...")


TRACKS = """
SELECT track_id, title, artist, codec, source_sample_rate_hz AS rate_hz, round(duration_s, 1) AS seconds,
       round(rms, 3) AS rms
FROM tracks ORDER BY track_id
"""
FAILURES = "SELECT track_id, stage, error_type, error_message FROM failures"
RESOLUTIONS = """
SELECT frames.resolution, count(DISTINCT track_id) AS tracks, sum(num_frames)::INT AS frames,
       any_value(len(embeddings[1])) AS vector_length
FROM frames JOIN tracks USING (recipe, track_id, content_hash)
GROUP BY ALL ORDER BY frames DESC
"""
MATRIX = """
SELECT num_frames, len(embeddings[1]), [round(value, 3) for value in embeddings[1][1:4]]
FROM frames JOIN tracks USING (recipe, track_id, content_hash)
WHERE frames.resolution = '16hz' AND track_id = 'caves.mp3'
"""
NEIGHBOURS = """
WITH vectors AS (
    SELECT recipe, track_id, embeddings[1] AS vector
    FROM frames JOIN tracks USING (recipe, track_id, content_hash)
    WHERE frames.resolution = 'global'
)
SELECT other.track_id, round(list_cosine_similarity(query.vector, other.vector), 4) AS score
FROM vectors AS query JOIN vectors AS other USING (recipe)
WHERE query.track_id = 'caves.mp3' AND other.track_id <> 'caves.mp3'
ORDER BY score DESC LIMIT 5
"""

if __name__ == "__main__":
    sys.exit(main())
