"""What `make test-official` installs is environment.yml but for two stated differences; its lock
repeats none of those pins.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def lines_of(environment: Path) -> list[str]:
    script = [sys.executable, str(ROOT / ".ci/official_requirements.py"), str(environment)]
    return subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()


def names(lines: list[str]) -> set[str]:
    return {
        re.sub(r"[-_.]+", "-", re.split(r"[=\[]", line)[0]).lower()
        for line in lines
        if re.match(r"\w", line)
    }


def test_requirements_are_those_of_the_environment() -> None:
    text = (ROOT / "environment.yml").read_text().split("- pip:")[1]
    pins = [line.strip()[2:] for line in text.splitlines() if line.strip().startswith("- ")]
    lines = lines_of(ROOT / "environment.yml")
    found = [line for line in lines if not line.startswith("#")]
    assert [line for line in lines if line.startswith("#")] == [
        "# left out: --extra-index-url https://download.pytorch.org/whl/cu118",
        "# instead of torch==2.7.1+cu118",
        "# left out: spconv-cu118==2.3.8",
    ]
    assert set(pins) - set(found) == {pins[0], "torch==2.7.1+cu118", "spconv-cu118==2.3.8"}
    assert set(found) - set(pins) == {"torch==2.7.1"}


def test_comments_and_other_cuda_builds(tmp_path: Path) -> None:
    file = tmp_path / "environment.yml"
    file.write_text(
        "dependencies:\n  - python=3.10\n  - pip:\n      # words\n      - a==1.0  # why\n      - "
        "b[c]==2+cu121\n      - -e .\n"
    )
    assert lines_of(file) == ["a==1.0", "# instead of b[c]==2+cu121", "b[c]==2", "-e ."]


def test_the_lock_repeats_no_pin_and_pins_all() -> None:
    lock = [
        line
        for line in (ROOT / ".ci/official-constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lock)
    assert len(lock) == len(names(lock)) > 100
    assert not names(lock) & names(lines_of(ROOT / "environment.yml"))
