"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Outputs of the official Waymo package and of the original implementation, small ones, in git."""
    return TESTS / "goldens"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Larger goldens and real sweeps that stay out of git: a folder beside the checkout, or KDLIB_SHARED."""
    folder = Path(os.environ.get("KDLIB_SHARED", TESTS.parent.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder} (set KDLIB_SHARED); it holds files that may not be committed")
    return folder
