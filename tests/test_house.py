"""What is in the repository: the agreed rooms, nothing large, no outputs, versions that agree with
each other.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from kdlib.models.weights import read_card

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    *("notebooks", "kdlib", "data", "reports", "tests"),
    *("environment.yml", "pyproject.toml", "Makefile", "README.md", "LICENSE", ".ci", ".gitignore"),
}
LARGEST, TOGETHER = 2e6, 13e6  # bytes


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Files that are in git, or would be after ``git add``."""
    command = [
        "git",
        "-C",
        str(ROOT),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    listing = subprocess.run(command, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip(f"needs a git checkout, which {ROOT} is not: git clone the project")
    files = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [file for file in files if file.is_file()]


def requirements(text: str) -> dict[str, Requirement]:
    """Requirement lines by normalised name; options, comments and editable installs are left
    out.
    """
    lines = [line.strip().removeprefix("- ") for line in text.splitlines()]
    found = [Requirement(line) for line in lines if re.match(r"[a-zA-Z0-9][\w.\[\]-]*[<>=]=", line)]
    return {re.sub(r"[-_.]+", "-", r.name).lower(): r for r in found}


def pinned(requirement: Requirement) -> str:
    (pin,) = requirement.specifier
    assert pin.operator == "=="
    return pin.version.partition("+")[0]


def declared(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for: the dependencies and those of some extras."""
    text = (ROOT / "pyproject.toml").read_text()
    names = ("dependencies", *extras)
    blocks = [re.search(rf"^{name} = \[(.*?)\]$", text, re.M | re.S) for name in names]
    items = [item for block in blocks if block for item in re.findall(r'"([^"]+)"', block[1])]
    return [Requirement(item) for item in items if not item.startswith("kdlib[")]


def test_top_level_has_the_agreed_rooms_only(tracked: list[Path]) -> None:
    top = {file.relative_to(ROOT).parts[0] for file in tracked}
    assert top <= ROOMS, f"not agreed: {sorted(top - ROOMS)}"
    assert ROOMS <= top, f"missing: {sorted(ROOMS - top)}"


def test_data_holds_its_readme_and_weights_only(tracked: list[Path]) -> None:
    inside = {
        file.relative_to(ROOT / "data").parts[0]
        for file in tracked
        if file.is_relative_to(ROOT / "data")
    }
    assert inside <= {"README.md", "weights"}
    for weights in (
        file
        for file in tracked
        if file.parent == ROOT / "data/weights" and file.suffix == ".safetensors"
    ):
        assert read_card(weights), f"{weights.name} carries no card"


def test_nothing_is_large(tracked: list[Path]) -> None:
    sizes = {file: file.stat().st_size for file in tracked}
    large = {str(file.relative_to(ROOT)): size for file, size in sizes.items() if size > LARGEST}
    assert not large
    assert sum(sizes.values()) < TOGETHER


def test_notebooks_have_no_outputs(tracked: list[Path]) -> None:
    for file in (f for f in tracked if f.suffix == ".ipynb"):
        for number, cell in enumerate(json.loads(file.read_text())["cells"]):
            assert not cell.get("outputs"), f"{file.name} cell {number} has outputs"
            assert cell.get("execution_count") is None, (
                f"{file.name} cell {number} has an execution count"
            )


def test_ci_runs_the_readmes_test_command() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    commands = [
        line for line in script.read_text().splitlines() if line and not line.startswith("#")
    ]
    assert "set -euo pipefail" in commands
    assert "make test" in commands and "make test-long" in commands
    assert 'make test-official PYTHON310="$python310"' in [command.strip() for command in commands]


def test_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert (
        "Apache License" in text
        and "Version 2.0, January 2004" in text
        and ("END OF TERMS AND CONDITIONS") in text
    )


def test_constraints_pin_every_declared_package() -> None:
    text = (ROOT / ".ci/constraints.txt").read_text()
    pins = requirements(text)
    assert all(pinned(pin) for pin in pins.values())
    assert pinned(pins["torch"]) == "2.13.0"
    for wanted in declared("cpu", "dev", "export"):
        pin = pins[wanted.name.lower()]
        assert wanted.specifier.contains(pinned(pin)), f"{pin} is outside {wanted}"


def test_constraints_give_each_python_one_version() -> None:
    seen: dict[tuple[str, str], str] = {}
    lines = (ROOT / ".ci/constraints.txt").read_text().splitlines()
    for pin in (Requirement(line) for line in lines if not line.startswith("#")):
        for version in ("3.10.13", "3.11.2", "3.11.7", "3.12.3"):
            python = {"python_version": version.rpartition(".")[0], "python_full_version": version}
            if pin.marker is None or pin.marker.evaluate(python):
                assert seen.setdefault((pin.name, version), str(pin)) == str(pin), (
                    f"two pins of {pin.name} for Python {version}"
                )
