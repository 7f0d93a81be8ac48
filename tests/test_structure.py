"""The rules of the structure, held against the code's own imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

BASE = {
    *("schema", "config", "errors", "storage", "local_files", "store_location", "delta_retry", "long_rows"),
    *("parts", "tables"),
}
# What each step may import beside the base. A step that is a folder names its own other files here; `embed` and
# `write` pool; `check` and the data set read.
STEPS: dict[str, set[str]] = {
    "catalog.load": {"catalog.manifest", "catalog.mirdata"},
    "catalog.manifest": set(),
    "catalog.msd": {"catalog.load", "catalog.manifest"},
    "catalog.fma": {"catalog.load", "catalog.manifest"},
    "catalog.mirdata": {"catalog.manifest"},
    "plan": set(),
    "decode.tracks": {"decode.audio"},
    "decode.isolation": {"decode.audio"},
    "decode.audio": {"decode.decoders", "decode.resample", "decode.stated_length"},
    "decode.decoders": {"decode.stated_length"},
    "decode.resample": set(),
    "decode.stated_length": set(),
    "window": set(),
    "pool": set(),
    "embed": {"infer", "pool", "window"},
    "infer": {"window"},
    "placement": set(),
    "progress": set(),
    "watch": set(),
    "logs": set(),
    "write": {"pool"},
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
    *("index.codes", "index.files", "index.manifest", "index.source", "index.segments", "index.draft"),
    *("index.vector_index", "index.quality", "index.follow", "index.build", "export"),
    *("search.filters", "search.align", "search.ground_truth", "search.evaluate"),
    *("search.neighbors", "search.near_duplicates", "search.candidates", "search.recognise", "search.query"),
    "search.searcher",
    *("service.similarity", "service.catalog", "service.guard", "service.audio", "service.models"),
    *("service.uploads", "service.state", "service.app"),
)
SEARCH_USES = {"read", "read_parts", "decode.audio", "embed"}
# The report of a run, from the bottom up; it reads the ledger.
REPORT = tuple(
    f"report.{name}" for name in ("health", "sample", "charts", "advice", "health_page", "page", "publish")
)
ASSEMBLY = {
    *("dataflow", "metrics", "collect", "probe", "probe_dataflow", "estimate", "run"),
    *("index.dataflow", "service.serve"),
}
KNOW_RAY = {"dataflow", "metrics", "collect", "probe_dataflow", "index.dataflow", "service.serve"}


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


def name_module(path: Path) -> str:
    """Return a module's name within its package: "search.align" for pipeline/search/align.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts[1:])


MODULES = {name_module(path): path for path in list_files("pipeline") if path.stem != "__init__"}


def own_imports(module: str) -> set[str]:
    """Return names of the pipeline's modules that one of them imports."""
    return {name.removeprefix("pipeline.") for name in list_imports(MODULES[module])} & set(MODULES)


def test_every_file_of_the_pipeline_has_its_place() -> None:
    assert set(MODULES) == BASE | set(STEPS) | set(SEARCH) | set(REPORT) | ASSEMBLY


@pytest.mark.parametrize(
    "path", sorted((ROOT / "pipeline").rglob("__init__.py")), ids=lambda path: path.parent.name
)
def test_a_folder_is_described_and_nothing_else(path: Path) -> None:
    statements = ast.parse(path.read_text()).body
    assert len(statements) == 1
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("step", STEPS)
def test_a_step_imports_the_base_and_no_other_step(step: str) -> None:
    assert own_imports(step) <= BASE | STEPS[step]


@pytest.mark.parametrize("module", SEARCH)
def test_search_is_built_in_layers(module: str) -> None:
    below = set(SEARCH[: SEARCH.index(module)])
    assert own_imports(module) <= BASE | SEARCH_USES | below


@pytest.mark.parametrize("module", REPORT)
def test_the_report_is_built_in_layers(module: str) -> None:
    below = set(REPORT[: REPORT.index(module)])
    assert own_imports(module) <= BASE | {"ledger"} | below


@pytest.mark.parametrize("step", [*STEPS, *REPORT, *sorted(ASSEMBLY - {"index.dataflow", "service.serve"})])
def test_nothing_on_the_way_to_the_store_knows_of_search(step: str) -> None:
    assert not own_imports(step) & {*SEARCH, "index.dataflow", "service.serve"}


@pytest.mark.parametrize("module", sorted(BASE))
def test_the_base_imports_the_base_alone(module: str) -> None:
    assert own_imports(module) <= BASE


@pytest.mark.parametrize("path", list_files("musicfm_model"), ids=lambda path: path.stem)
def test_the_model_knows_nothing_of_the_pipeline(path: Path) -> None:
    roots = {name.split(".")[0] for name in list_imports(path)}
    assert not roots & {"pipeline", "jobs", "ray", "pyarrow", "deltalake"}


@pytest.mark.parametrize("module", MODULES)
def test_ray_appears_where_steps_are_assembled_alone(module: str) -> None:
    imports_ray = "ray" in {name.split(".")[0] for name in list_imports(MODULES[module])}
    assert imports_ray == (module in KNOW_RAY)


@pytest.mark.parametrize("module", MODULES)
def test_object_storage_goes_through_one_file(module: str) -> None:
    roots = {name.split(".")[0] for name in list_imports(MODULES[module])}
    assert module == "storage" or not roots & {"fsspec", "s3fs", "boto3"}


@pytest.mark.parametrize("package", ["pipeline", "musicfm_model"])
def test_nobody_imports_the_commands(package: str) -> None:
    for path in list_files(package):
        assert "jobs" not in {name.split(".")[0] for name in list_imports(path)}


@pytest.mark.parametrize("package", ["pipeline", "musicfm_model", "jobs"])
def test_files_stay_readable(package: str) -> None:
    too_long = {path.name: n for path in list_files(package) if (n := len(path.read_text().splitlines())) > 330}
    assert not too_long
