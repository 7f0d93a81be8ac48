import re
from pathlib import Path

import pytest
from deltalake import DeltaTable

from pipeline.location import StoreLocation
from pipeline.store.read import FeatureStore
from tests.stores import KnownStore

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install '.[notebook]'")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install '.[notebook]'")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install '.[notebook]'")
pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install '.[notebook]'")
pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[notebook]'")

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "probe.ipynb"


def run_notebook(store: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """Run the notebook on a store; return all that it printed, and the number of its pictures."""
    monkeypatch.setenv("FEATURE_STORE", store)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


def test_it_is_kept_without_outputs_and_says_which_model_the_demo_has() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.outputs or cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert "demo/musicfm_nano.md" in notebook.cells[0].source


@pytest.mark.slow
def test_without_genres_it_asks_for_the_track_and_noise_gives_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    known.run({f"track {number}": f"content {number}" for number in range(8)})
    text, num_pictures = run_notebook(known.location.url, tmp_path, monkeypatch)
    assert num_pictures == 1
    assert "(8, 5)" in text
    found = re.search(r"track: accuracy ([\d.]+), chance ([\d.]+)\n", text)
    assert found
    # The store's frames are noise, independent of each other: nothing is to be learnt from them.
    assert 0 <= float(found[1]) <= float(found[2]) + 0.25


@pytest.mark.slow
def test_with_genres_it_probes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    contents = {f"track {number:02}": f"content {number}" for number in range(60)}
    known.run(contents, resolutions=("global",), tracks_per_part=60)
    ((_, features),) = known.features.items()
    table = DeltaTable(known.location.table_url("tracks"))
    table.update(new_values={"genre": "rock"})
    # A genre that the vectors tell: the sign of their first value.
    named = ", ".join(f"'{track_id}'" for track_id, vectors in features.items() if vectors[0, 0] > 0)
    table.update(new_values={"genre": "jazz"}, predicate=f"track_id IN ({named})")
    known.run({**contents, "one more": "x"}, resolutions=("global",))
    genres = FeatureStore(known.location.url).tracks(["genre"])["genre"].to_pylist()
    assert min(genres.count("rock"), genres.count("jazz")) >= 10
    text, _ = run_notebook(known.location.url, tmp_path, monkeypatch)
    found = re.search(r"genre: accuracy ([\d.]+), chance ([\d.]+)", text)
    assert found
    assert float(found[1]) > 0.8 > float(found[2])
