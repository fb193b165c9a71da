"""Every test of models runs where its tensors can lie."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _on_every_device(device: object) -> None:
    """Ask for the device, and so for the test once on each."""
