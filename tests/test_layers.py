"""Who may import whom: data flows one way through the package, and light parts stay light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "kdlib"

# A module imports from its own entry and from those above it.
LAYERS = (
    "errors",
    "types",
    "config",
    "zoo",
    "jsonfile",
    "provenance",
    "ranks",
    "geometry",
    "waymo",
    "simulate",
    "data",
    "voxel",
    "sparse",
    "models",
    "losses",
    "kd",
    "training",
    "evaluation",
    "profiling",
    "viz",
    "doctor",
    "runs",
    "profiles",
    "occupancy",
    "runlog",
    "report",
    "report_study",
    "execute",
    "batch",
    "status",
    "tracking",
    "pipeline",
    "trained",
    "export",
    "comparison",
    "explore",
    "view",
    "fly",
    "published",
    "counting",
    "costs",
    "study",
    "cross_stage",
    "imports",
    "bench",
    "publish",
    "commands",
    "cli",
    "__main__",
)
NUMPY_ONLY = ("errors", "config", "zoo", "jsonfile", "provenance", "waymo", "simulate", "doctor", "profiles")
HEAVY = ("torch", "tensorflow", "open3d", "lightning", "pandas", "pyarrow", "matplotlib", "plotly", "scipy", "dask")
FORBIDDEN = ("tensorflow", "waymo_open_dataset", "pickle", "cloudpickle")  # in any module, even inside a function
OFFICIAL = "official_child"  # except there: scripts for the Python that has Waymo's own package, run by path, imported by nobody

MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted(file: Path) -> str:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module a tree imports, wherever the statement stands; ``from kdlib import runs`` counts as ``kdlib.runs``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            if node.module == "kdlib":
                yield from (f"kdlib.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def loaded_after(code: str) -> set[str]:
    """Top-level packages in ``sys.modules`` of a fresh interpreter after some code."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    child = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(child.stdout.splitlines()[-1]))


@pytest.mark.parametrize("file", MODULES, ids=dotted)
def test_imports_come_from_above(file: Path) -> None:
    own = layer_of(dotted(file))
    assert own in ("", *LAYERS), f"{dotted(file)} has no place in the layers: give it one in {Path(__file__).name}"
    for name in imports(ast.parse(file.read_text())):
        if name.split(".")[0] != "kdlib":
            continue
        wanted = layer_of(name)
        if wanted in ("", "__version__"):
            continue
        assert own, f"kdlib/__init__.py imports {name}"
        assert wanted in LAYERS, f"{dotted(file)} imports {name}, which is in no layer"
        assert LAYERS.index(wanted) <= LAYERS.index(own), f"{dotted(file)} imports {name} from a layer below it"


@pytest.mark.parametrize("file", [file for file in MODULES if file.stem != OFFICIAL], ids=dotted)
def test_tensorflow_and_pickle_are_never_imported(file: Path) -> None:
    names = set(imports(ast.parse(file.read_text())))
    assert not {name.split(".")[0] for name in names} & set(FORBIDDEN)
    assert not [name for name in names if name.endswith(f".{OFFICIAL}")]


@pytest.mark.parametrize("file", [file for file in MODULES if file.stem == OFFICIAL], ids=dotted)
def test_scripts_for_the_official_python_need_nothing_of_kdlib(file: Path) -> None:
    names = {name.split(".")[0] for name in imports(ast.parse(file.read_text()))}
    assert not names & {"kdlib", "pickle", "cloudpickle"}


def test_notebooks_do_not_import_tensorflow() -> None:
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(file.read_text())["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        names = imports(ast.parse("\n".join(line for line in code.splitlines() if not line.lstrip().startswith("%"))))
        assert not {name.split(".")[0] for name in names} & set(FORBIDDEN), file.name


@pytest.mark.parametrize("file", [m for m in MODULES if layer_of(dotted(m)) in NUMPY_ONLY], ids=dotted)
def test_numpy_only_parts_do_not_name_torch(file: Path) -> None:
    assert "torch" not in {name.split(".")[0] for name in imports(ast.parse(file.read_text()))}


def test_the_package_itself_is_light() -> None:
    assert not loaded_after("import kdlib") & {*HEAVY, "numpy"}


def test_the_command_line_starts_light() -> None:
    assert not loaded_after("import kdlib.cli") & {*HEAVY, "numpy"}


@pytest.mark.parametrize("part", ["waymo", "simulate"])
def test_reading_and_simulating_do_not_load_torch(part: str) -> None:
    names = [dotted(file) for file in MODULES if layer_of(dotted(file)) == part]
    assert not loaded_after("import " + ", ".join(names)) & {"torch", "tensorflow"}


def test_no_part_loads_tensorflow() -> None:
    names = [dotted(file) for file in MODULES if file.name != "__main__.py"]
    assert "tensorflow" not in loaded_after("import " + ", ".join(names))
