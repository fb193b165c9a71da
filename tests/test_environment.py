"""environment.yml against pyproject.toml, against the Waymo wheel's own pins, and against what
package registries can deliver.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from functools import lru_cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from kdlib.tools.judge.official import OfficialError, find_python

ROOT = Path(__file__).resolve().parents[1]
PYTHON = "3.10"
TEN_PACKAGES = {
    *(
        "torch",
        "spconv-cu118",
        "jupyterlab",
        "ipywidgets",
        "open3d",
        "matplotlib",
        "pandas",
        "numpy",
        "papermill",
    ),
    "waymo-open-dataset-tf-2-11-0",
}
WAYMO = "waymo-open-dataset-tf-2-11-0"
# What waymo-open-dataset-tf-2-11-0 1.6.1 asks for exactly, of the packages we name too; tensorflow
# 2.11 wants protobuf < 3.20.
WAYMO_PINS = """numpy==1.21.5 pandas==1.5.3 matplotlib==3.6.1 pyarrow==10.0.0 plotly==5.13.1
    pillow==9.2.0 setuptools==67.6.0 dask==2023.3.1 protobuf<3.20,>=3.9.2"""
CUDA_PARTS = ("+cu118",)


def name_of(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)


@lru_cache(maxsize=1)
def pip_section() -> tuple[str, ...]:
    """The lines of the pip section, comments left out."""
    lines = (ROOT / "environment.yml").read_text().splitlines()
    start = lines.index("  - pip:")
    items = [
        line.strip().removeprefix("- ") for line in lines[start + 1 :] if line.startswith("      ")
    ]
    return tuple(item for item in items if not item.startswith("#"))


@lru_cache(maxsize=1)
def pins() -> dict[str, Requirement]:
    """Every pinned package by its normalised name."""
    found = [Requirement(item) for item in pip_section() if not item.startswith("-")]
    named = {name_of(requirement): requirement for requirement in found}
    assert len(named) == len(found), "a package is pinned twice"
    return named


def version(pin: Requirement) -> Version:
    (clause,) = pin.specifier
    assert clause.operator == "==" and not clause.version.endswith("*"), f"{pin} is no exact pin"
    return Version(clause.version)


def declared() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for, by extra; '' holds the plain dependencies. Python 3.10 has no
    TOML reader.
    """
    text = (ROOT / "pyproject.toml").read_text()
    blocks = {"": re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S)[1]}
    extras = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    blocks |= dict(re.findall(r"^(\w+) = \[(.*?)\]$", extras, re.M | re.S))
    return {
        extra: [Requirement(item) for item in re.findall(r'"([^"]+)"', block)]
        for extra, block in blocks.items()
    }


# ---- offline


def test_every_pin_is_exact():
    assert all(version(pin) for pin in pins().values())
    assert [item for item in pip_section() if item.startswith("-")] == [
        "--extra-index-url https://download.pytorch.org/whl/cu118",
        "-e .",
    ]


def test_the_ten_packages_are_there():
    assert set(pins()) >= TEN_PACKAGES
    assert str(version(pins()["torch"])) == "2.7.1+cu118", "the last torch for CUDA 11.8"


def test_the_environments_python_is_allowed():
    text = (ROOT / "environment.yml").read_text()
    assert re.search(r"^  - python=3\.10$", text, re.M)
    wanted = re.search(r'^requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert PYTHON in SpecifierSet(wanted)


@pytest.mark.parametrize("extra", ["", "gpu", "waymo", "dev"])
def test_every_declared_package_is_pinned_in_its_range(extra):
    python = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.13"}
    for wanted in declared()[extra]:
        if wanted.marker is not None and not wanted.marker.evaluate(python):
            continue
        assert name_of(wanted) in pins(), (
            f"environment.yml has no {wanted.name}, pyproject.toml asks for {wanted}"
        )
        pin = pins()[name_of(wanted)]
        assert version(pin) in wanted.specifier, (
            f"environment.yml has {pin}, pyproject.toml asks for {wanted}"
        )
        assert pin.extras >= wanted.extras, (
            f"environment.yml has {pin}, pyproject.toml asks for the extras {wanted.extras}"
        )


def test_both_open3d_are_never_installed_together():
    assert "open3d-cpu" not in pins()


def test_pins_agree_with_the_waymo_wheels():
    for text in WAYMO_PINS.split():
        wanted = Requirement(text)
        assert version(pins()[name_of(wanted)]) in wanted.specifier, (
            f"the Waymo wheel asks for {wanted}"
        )


def test_pins_agree_with_the_installed_wheels_metadata():
    try:
        asked = importlib.metadata.requires(WAYMO) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(
            f"{WAYMO} is not installed here: it has wheels for Python 3.10 only; make test-official"
        )
    agree_with(asked)


def agree_with(asked: list[str]) -> None:
    exact = [Requirement(text) for text in asked]
    assert exact
    for wanted in exact:
        if name_of(wanted) in pins():
            assert version(pins()[name_of(wanted)]) in wanted.specifier, (
                f"the Waymo wheel asks for {wanted}"
            )


# ---- with a package registry


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=15) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def python310() -> str:
    """A Python 3.10: pip builds what comes as source only, which some packages below TensorFlow do,
    for its own Python alone.
    """
    if sys.version_info[:2] == (3, 10):
        return sys.executable
    try:
        return str(find_python())
    except OfficialError:
        return shutil.which("python3.10") or pytest.skip(
            "resolving for Python 3.10 needs one: put python3.10 on PATH"
        )


def pip(*arguments: str, python: str, seconds: float = 280.0) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "--disable-pip-version-check",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


def plain(pin: Requirement, cuda: bool) -> str:
    """A requirement as the reachable indexes can give it."""
    text = str(pin)
    for part in () if cuda else CUDA_PARTS:
        text = text.replace(part, "")
    return text


@pytest.mark.official
def test_registries_deliver_the_environment(tmp_path):
    where = python310()
    one = str(pins()["nbstripout"])
    probe = pip(
        "download",
        "--no-deps",
        "--retries",
        "0",
        "-d",
        str(tmp_path),
        one,
        python=where,
        seconds=100,
    )
    if probe.returncode:
        pytest.skip(
            "no package registry answers: "
            + (probe.stderr.strip().splitlines() or ["pip failed"])[-1]
        )
    index = pip_section()[0].partition(" ")[2]
    cuda = answers(f"{index}/torch/")
    if not cuda:
        warnings.warn(
            (
                f"{index} does not answer: resolved with {plain(pins()['torch'], False)} "
                "of the registry"
            ),
            stacklevel=1,
        )
    wanted = {name: plain(pin, cuda) for name, pin in pins().items()}
    report, listing = tmp_path / "report.json", tmp_path / "requirements.txt"
    listing.write_text(
        "\n".join([*(["--extra-index-url " + index] if cuda else []), *wanted.values()]) + "\n"
    )
    options = (
        "--dry-run",
        "--ignore-installed",
        "--prefer-binary",
        "--quiet",
        "--report",
        str(report),
    )
    done = pip("install", *options, "-r", str(listing), python=where)
    assert done.returncode == 0, "\n".join(
        line for line in done.stderr.splitlines() if "is ignored" not in line
    )[-3000:]
    result = json.loads(report.read_text())
    assert result["environment"]["python_version"] == PYTHON
    chosen = {
        canonicalize_name(item["metadata"]["name"]): item["metadata"] for item in result["install"]
    }
    for name, text in wanted.items():
        assert Version(chosen[name]["version"]) in Requirement(text).specifier, (
            f"{text} became {chosen[name]['version']}"
        )
    agree_with(chosen[WAYMO]["requires_dist"])
