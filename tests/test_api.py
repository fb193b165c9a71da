"""The names others build on are a decision: a change of tests/api.json shows it in the diff."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path

import pytest

SNAPSHOT = Path(__file__).with_name("api.json")


def public(module: str) -> list[str]:
    """Functions and classes a module defines itself, without a leading underscore."""
    found = importlib.import_module(module)
    kinds = (inspect.isclass, inspect.isfunction)
    members = inspect.getmembers(found, lambda value: any(kind(value) for kind in kinds))
    return [name for name, value in members if (value.__module__ + ".").startswith(module + ".") and not name.startswith("_")]


@pytest.mark.parametrize("module", ["kdlib.types", "kdlib.config", "kdlib.zoo"])
def test_public_names_are_the_agreed_ones(module: str) -> None:
    agreed = json.loads(SNAPSHOT.read_text())[module]
    assert public(module) == agreed, f"if the change is meant, write it into {SNAPSHOT.name}"
