import re
from pathlib import Path

import pytest

from pipeline.location import StoreLocation
from tests.pipeline.probing.cases import RECIPE, is_positive, write_csv
from tests.stores import KnownStore, make_recipe

pytestmark = pytest.mark.slow

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install '.[notebook]'")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install '.[notebook]'")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install '.[notebook]'")
pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[notebook]'")

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "probe_layers.ipynb"


def test_labels_in_a_table_with_intervals_and_a_plot_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownStore(StoreLocation(str(tmp_path / "store")))
    contents = {f"track {number:02}": f"content {number}" for number in range(50)}
    known.run(contents, (make_recipe(7), make_recipe(9)), ("global",), tracks_per_part=50)
    labels = {name: "yes" if is_positive(known, name) else "no" for name in known.contents[RECIPE]}
    monkeypatch.setenv("LABELS", write_csv(tmp_path / "labels.csv", ("track_id", "label"), labels.items()))
    monkeypatch.setenv("FEATURE_STORE", known.location.url)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.outputs or cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    rows = re.findall(
        r"^ +(7|9) +(linear|mlp) +accuracy +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$", text, re.MULTILINE
    )
    assert [row[:2] for row in rows] == [("7", "linear"), ("7", "mlp"), ("9", "linear"), ("9", "mlp")]
    values = {row[:2]: [float(cell) for cell in row[2:]] for row in rows}
    value, low, high, chance = values["7", "linear"]
    assert low <= value <= high
    assert value > 0.8 > chance  # the answer stands in this layer; the other is noise
