"""Bring a Feast online store up to date with a feature store's ``tracks``, and serve some of them.

Run in a copy of this folder, with ``pip install feast deltalake`` in an environment of its own: Feast 0.67 needs
an older pandas than the project has. Each run serves what has been embedded by then. A track that left the store
stays in the online store until ``data`` is removed and made anew: Feast takes nothing away.

    python serve_tracks.py ~/features TRACK_ID …
"""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet
from deltalake import DeltaTable
from feast import FeatureStore
from features import LIVE_TRACKS, recipe, track, tracks

NAMES = [field.name for field in tracks.schema]


def copy_live_tracks(store: str) -> tuple[list[str], datetime]:
    """Copy the table's live rows that have a vector, in bounded memory; return their recipes and oldest time."""
    files = DeltaTable(f"{store}/tracks").file_uris()
    parts = pyarrow.dataset.dataset(files, partitioning="hive", partition_base_dir=f"{store}/tracks")
    live = parts.scanner([*NAMES, "event_time"], filter=pc.field("embedding").is_valid(), batch_size=4096)
    recipes, oldest = set(), datetime.now(UTC)
    Path(LIVE_TRACKS).parent.mkdir(exist_ok=True)
    with pyarrow.parquet.ParquetWriter(LIVE_TRACKS, live.projected_schema) as writer:
        for batch in live.to_batches():
            writer.write_batch(batch)
            recipes.update(pc.unique(batch["recipe"]).to_pylist())
            oldest = min(oldest, pc.min(batch["event_time"]).as_py() or oldest)
    return sorted(recipes), oldest


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("store", help="a feature store on this machine, such as demo/store")
parser.add_argument("track_ids", nargs="*", help="tracks to serve")
flags = parser.parse_args()

recipes, oldest = copy_live_tracks(flags.store)
feast = FeatureStore(repo_path=".")
feast.apply([recipe, track, tracks])
feast.materialize(oldest, datetime.now(UTC))

entities = [{"recipe": name, "track_id": track_id} for name in recipes for track_id in flags.track_ids]
if entities:
    features = [f"tracks:{name}" for name in NAMES if name not in ("recipe", "track_id")]
    served = feast.get_online_features(features=features, entity_rows=entities).to_dict()
    print(json.dumps(served))
