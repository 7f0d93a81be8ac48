"""The rules of the structure, held against the code's own imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

BASE = {"schema", "config", "errors", "storage", "store_location", "delta_retry", "parts", "tables"}
# What each step may import beside the base. A step in several files names its other files here; `embed` pools on
# the device; `check` and the data set read.
STEPS: dict[str, set[str]] = {
    "catalog": {"catalog_manifest", "catalog_mirdata"},
    "catalog_manifest": {"catalog"},
    "catalog_msd": {"catalog", "catalog_manifest"},
    "catalog_fma": {"catalog", "catalog_manifest"},
    "catalog_mirdata": {"catalog_manifest"},
    "plan": set(),
    "decode": {"audio"},
    "isolation": {"audio"},
    "audio": {"decoders", "resample", "stated_length"},
    "decoders": {"stated_length"},
    "resample": set(),
    "stated_length": set(),
    "window": set(),
    "pool": set(),
    "embed": {"infer", "pool", "window"},
    "infer": {"window"},
    "placement": set(),
    "progress": set(),
    "watch": set(),
    "logs": set(),
    "write": set(),
    "ledger": set(),
    "writer": {"ledger"},
    "commit": {"ledger", "writer"},
    "maintain": {"ledger", "writer"},
    "snapshot": set(),
    "read_parts": set(),
    "read": {"read_parts", "snapshot"},
    "check": {"read"},
    "torch_dataset": {"read"},
}
# What answers questions once the store exists, from the bottom up: a file imports those before it, what reads the
# store, and the steps that turn a file's bytes into vectors.
SEARCH = (
    *("filters", "similarity", "align", "ground_truth", "evaluate"),
    *("index_codes", "index_files", "index_manifest", "index_source", "index_segments", "index_draft", "index"),
    *("index_quality", "index_follow", "index_build", "neighbors", "near_duplicates"),
    *("candidates", "recognise", "query", "search", "export"),
    *("service_catalog", "service_guard", "service_audio", "service_models", "service_uploads", "service_state"),
    "service",
)
SEARCH_USES = {"read", "read_parts", "audio", "embed"}
# The report of a run, from the bottom up; it reads the ledger.
REPORT = (
    *("report_health", "report_sample", "report_charts", "report_advice", "report_health_page", "report_page"),
    "report",
)
ASSEMBLY = {
    *("dataflow", "metrics", "collect", "probe", "probe_dataflow", "estimate", "run"),
    *("index_dataflow", "serve"),
}
KNOW_RAY = {"dataflow", "metrics", "collect", "probe_dataflow", "index_dataflow", "serve"}


def list_imports(path: Path) -> set[str]:
    """Return dotted names of all modules that a file imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def list_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def own_imports(path: Path) -> set[str]:
    """Return names of the pipeline's modules that a file imports."""
    modules = {file.stem for file in list_files("pipeline")}
    return {name.split(".")[1] for name in list_imports(path) if name.startswith("pipeline.")} & modules


def test_every_file_of_the_pipeline_has_its_place() -> None:
    known = BASE | set(STEPS) | set(SEARCH) | set(REPORT) | ASSEMBLY | {"__init__"}
    assert {path.stem for path in list_files("pipeline")} == known


@pytest.mark.parametrize("step", STEPS)
def test_a_step_imports_the_base_and_no_other_step(step: str) -> None:
    assert own_imports(ROOT / "pipeline" / f"{step}.py") <= BASE | STEPS[step]


@pytest.mark.parametrize("module", SEARCH)
def test_search_is_built_in_layers(module: str) -> None:
    below = set(SEARCH[: SEARCH.index(module)])
    assert own_imports(ROOT / "pipeline" / f"{module}.py") <= BASE | SEARCH_USES | below


@pytest.mark.parametrize("module", REPORT)
def test_the_report_is_built_in_layers(module: str) -> None:
    below = set(REPORT[: REPORT.index(module)])
    assert own_imports(ROOT / "pipeline" / f"{module}.py") <= BASE | {"ledger"} | below


@pytest.mark.parametrize("step", [*STEPS, *REPORT, *ASSEMBLY - {"index_dataflow", "serve"}])
def test_nothing_on_the_way_to_the_store_knows_of_search(step: str) -> None:
    assert not own_imports(ROOT / "pipeline" / f"{step}.py") & {*SEARCH, "index_dataflow", "serve"}


@pytest.mark.parametrize("module", sorted(BASE))
def test_the_base_imports_the_base_alone(module: str) -> None:
    assert own_imports(ROOT / "pipeline" / f"{module}.py") <= BASE


@pytest.mark.parametrize("path", list_files("musicfm_model"), ids=lambda path: path.stem)
def test_the_model_knows_nothing_of_the_pipeline(path: Path) -> None:
    roots = {name.split(".")[0] for name in list_imports(path)}
    assert not roots & {"pipeline", "jobs", "ray", "pyarrow", "deltalake"}


@pytest.mark.parametrize("path", list_files("pipeline"), ids=lambda path: path.stem)
def test_ray_appears_where_steps_are_assembled_alone(path: Path) -> None:
    imports_ray = "ray" in {name.split(".")[0] for name in list_imports(path)}
    assert imports_ray == (path.stem in KNOW_RAY)


@pytest.mark.parametrize("path", list_files("pipeline"), ids=lambda path: path.stem)
def test_object_storage_goes_through_one_file(path: Path) -> None:
    roots = {name.split(".")[0] for name in list_imports(path)}
    assert path.stem == "storage" or not roots & {"fsspec", "s3fs", "boto3"}


@pytest.mark.parametrize("package", ["pipeline", "musicfm_model"])
def test_nobody_imports_the_commands(package: str) -> None:
    for path in list_files(package):
        assert "jobs" not in {name.split(".")[0] for name in list_imports(path)}


@pytest.mark.parametrize("package", ["pipeline", "musicfm_model", "jobs"])
def test_files_stay_readable(package: str) -> None:
    too_long = {path.name: n for path in list_files(package) if (n := len(path.read_text().splitlines())) > 330}
    assert not too_long
