"""Bring a Feast online store up to date with a feature store's tracks and predictions, and serve some of them.

Run in a copy of this folder, with ``pip install feast deltalake`` in an environment of its own: Feast 0.67 needs
an older pandas than the project has. Each run serves what has been embedded by then. A track that left the store
stays in the online store until ``data`` is removed and made anew: Feast takes nothing away.

    python serve_tracks.py ~/features TRACK_ID …

The last line is JSON: the tracks' features, and under ``predictions`` what each head says of each.
"""

import argparse
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet
from deltalake import DeltaTable
from feast import FeatureStore, FeatureView
from features import LIVE_PREDICTIONS, LIVE_TRACKS, head, predictions, recipe, track, tracks

NAMES = [field.name for field in tracks.schema]
KEYS = ["recipe", "track_id", "content_hash"]
PREDICTIONS = pyarrow.schema(
    [
        *((name, pyarrow.string()) for name in ("head", "track_id", "task", "label")),
        ("score", pyarrow.float32()),
        ("start_s", pyarrow.float64()),
        ("event_time", pyarrow.timestamp("us", "UTC")),
    ]
)


def list_keys(rows: pyarrow.Table | pyarrow.RecordBatch) -> Iterator[tuple[str, str, str]]:
    """Return recipe, track and content of rows."""
    return zip(*(rows[name].to_pylist() for name in KEYS), strict=True)


def copy_live_tracks(store: str) -> tuple[list[str], datetime]:
    """Copy the tracks that have a vector, in bounded memory but for facts; return their recipes and oldest time.

    Vectors are rows of ``frames``, live where ``tracks`` names their content.
    """
    files = {name: DeltaTable(f"{store}/{name}").file_uris() for name in ("tracks", "frames")}
    tables = {
        name: pyarrow.dataset.dataset(uris, partitioning="hive", partition_base_dir=f"{store}/{name}")
        for name, uris in files.items()
    }
    facts = tables["tracks"].to_table(columns=[*(name for name in NAMES if name != "embedding"), "event_time"])
    vectors = tables["frames"].scanner(
        [*KEYS, "embeddings"], filter=pc.field("resolution") == "global", batch_size=4096
    )
    oldest = pc.min(facts["event_time"]).as_py() or datetime.now(UTC)
    place_of = {key: place for place, key in enumerate(list_keys(facts))}
    Path(LIVE_TRACKS).parent.mkdir(exist_ok=True)
    schema = facts.schema.append(pyarrow.field("embedding", pyarrow.list_(pyarrow.float32())))
    with pyarrow.parquet.ParquetWriter(LIVE_TRACKS, schema) as writer:
        for batch in vectors.to_batches():
            places = pyarrow.array([place_of.get(key) for key in list_keys(batch)], pyarrow.int64())
            live = facts.take(places.drop_null())
            embeddings = pc.list_flatten(batch["embeddings"]).filter(places.is_valid())
            writer.write_table(live.append_column("embedding", embeddings).cast(schema))
    return sorted(pc.unique(facts["recipe"]).to_pylist()), oldest


def copy_live_predictions(store: str) -> tuple[list[str], datetime | None]:
    """Copy what heads say, a row a head and track; return the heads and the oldest time, None without any."""
    if not DeltaTable.is_deltatable(f"{store}/predictions"):
        return [], None
    table = DeltaTable(f"{store}/predictions")
    scanned = table.scan(PREDICTIONS.names, "label IS NOT NULL")
    rows = pyarrow.RecordBatchReader.from_stream(scanned).cast(PREDICTIONS).read_all()
    rows = rows.sort_by([("head", "ascending"), ("track_id", "ascending"), ("start_s", "ascending")])
    lists = rows.group_by(["head", "track_id", "task"], use_threads=False).aggregate(
        [("label", "list"), ("score", "list"), ("start_s", "list"), ("event_time", "max")]
    )
    starts = [[start for start in starts if start is not None] for starts in lists["start_s_list"].to_pylist()]
    copied = pyarrow.table(
        {
            **{name: lists[name] for name in ("head", "track_id", "task")},
            "labels": lists["label_list"],
            "scores": lists["score_list"],
            "starts_s": pyarrow.array(starts, pyarrow.list_(pyarrow.float64())),
            "event_time": lists["event_time_max"],
        }
    )
    pyarrow.parquet.write_table(copied, LIVE_PREDICTIONS)
    return sorted(set(copied["head"].to_pylist())), pc.min(copied["event_time"]).as_py()


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("store", help="a feature store on this machine, such as demo/store")
parser.add_argument("track_ids", nargs="*", help="tracks to serve")
flags = parser.parse_args()

recipes, oldest = copy_live_tracks(flags.store)
heads, oldest_prediction = copy_live_predictions(flags.store)
feast = FeatureStore(repo_path=".")
feast.apply([recipe, track, tracks, *([head, predictions] if heads else [])])
feast.materialize(min(oldest, oldest_prediction or oldest), datetime.now(UTC))


def serve(view: FeatureView, keys: tuple[str, ...], entities: list[dict[str, str]]) -> dict[str, list[object]]:
    """Return the online features of some entities, a list a column."""
    features = [f"{view.name}:{field.name}" for field in view.schema if field.name not in keys]
    served: dict[str, list[object]] = feast.get_online_features(features=features, entity_rows=entities).to_dict()
    return served


entities = [{"recipe": name, "track_id": track_id} for name in recipes for track_id in flags.track_ids]
if entities:
    line: dict[str, object] = dict(serve(tracks, ("recipe", "track_id"), entities))
    predicted = [{"head": name, "track_id": track_id} for name in heads for track_id in flags.track_ids]
    line["predictions"] = serve(predictions, ("head", "track_id"), predicted) if predicted else {}
    print(json.dumps(line))
