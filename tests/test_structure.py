"""The few rules of the structure, held against the code's own imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

BASE = {"config", "errors", "schema", "storage", "location", "listing", "local_files", "logs"}
# Each room, and the rooms that it may import beside itself and the base.
ROOMS: dict[str, set[str]] = {
    "catalog": set(),
    "decode": {"catalog"},
    "embed": set(),
    "store": {"embed"},
    "report": {"store"},
    "run": {"catalog", "decode", "embed", "store", "report"},
    "probing": {"catalog", "store"},
    "training": {"decode", "embed", "report", "run", "probing"},
    "index": {"store", "run"},
    "search": {"decode", "embed", "store", "index"},
    "service": {"decode", "store", "index", "search"},
}
# Exceptions to the above that one file alone has.
ONLY = {
    ("decode", "catalog"): {"decode.tracks", "decode.tags"},
    ("store", "embed"): {"store.write"},
    ("index", "run"): {"index.dataflow"},
    ("training", "embed"): {"training.finetune", "training.tuned", "training.tuning"},
    ("training", "report"): {"training.run_page"},
    ("training", "run"): {"training.group", "training.prepare"},
}
KNOW_RAY = {"run", "training.group", "training.prepare", "index.dataflow", "service.serve"}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 60


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


def list_own_imports(module: str) -> set[str]:
    """Return names of the pipeline's modules that one of them imports."""
    return {name.removeprefix("pipeline.") for name in list_imports(MODULES[module])} & set(MODULES)


def name_room(module: str) -> str | None:
    """Return the room that a module stands in, None for the base."""
    return module.partition(".")[0] if "." in module else None


def test_every_file_stands_in_the_base_or_in_a_room() -> None:
    assert {module for module in MODULES if name_room(module) is None} == BASE
    assert {name_room(module) for module in MODULES} - {None} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_the_base_and_the_rooms_it_names(room: str) -> None:
    for module in (name for name in MODULES if name_room(name) == room):
        for other in {name_room(name) for name in list_own_imports(module)} - {None, room}:
            assert other in ROOMS[room], f"{module} imports {other}"
            assert module in ONLY.get((room, str(other)), {module}), f"{module} imports {other}"


def test_no_two_rooms_import_each_other() -> None:
    above: set[str] = set()
    for room, below in ROOMS.items():
        assert below <= above, f"{room} stands before what it imports"
        above.add(room)


@pytest.mark.parametrize("module", sorted(BASE))
def test_the_base_imports_the_base_alone(module: str) -> None:
    assert list_own_imports(module) <= BASE


@pytest.mark.parametrize(
    "path", sorted((ROOT / "pipeline").glob("*/__init__.py")), ids=lambda path: path.parent.name
)
def test_a_room_is_described_and_nothing_else(path: Path) -> None:
    assert len(ast.parse(path.read_text()).body) == 1
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", list_files("musicfm_model"), ids=lambda path: path.stem)
def test_the_model_knows_nothing_of_the_pipeline(path: Path) -> None:
    roots = {name.split(".")[0] for name in list_imports(path)}
    assert not roots & {"pipeline", "jobs", "ray", "pyarrow", "deltalake"}


@pytest.mark.parametrize("module", MODULES)
def test_ray_appears_where_steps_are_assembled_alone(module: str) -> None:
    imports_ray = "ray" in {name.split(".")[0] for name in list_imports(MODULES[module])}
    assert not imports_ray or module in KNOW_RAY or name_room(module) in KNOW_RAY


@pytest.mark.parametrize("module", MODULES)
def test_object_storage_goes_through_one_file(module: str) -> None:
    roots = {name.split(".")[0] for name in list_imports(MODULES[module])}
    assert module == "storage" or not roots & {"fsspec", "s3fs", "boto3"}


@pytest.mark.parametrize("package", ["pipeline", "musicfm_model"])
def test_nobody_imports_the_commands(package: str) -> None:
    for path in list_files(package):
        assert "jobs" not in {name.split(".")[0] for name in list_imports(path)}


@pytest.mark.parametrize("package", ["pipeline", "musicfm_model", "jobs", "training"])
def test_files_and_functions_stay_readable(package: str) -> None:
    for path in list_files(package):
        assert len(path.read_text().splitlines()) <= MAX_FILE_LINES, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION_LINES, f"{path}: {node.name}"
