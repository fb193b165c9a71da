"""The house rules a program can check: small modules, short functions, no device names, no unsafe loads, nothing swallowed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "kdlib").rglob("*.py"))
NO_NOUN = {"utils", "util", "helpers", "helper", "common", "misc"}
LONGEST_MODULE, LONGEST_FUNCTION = 300, 60  # lines

every_module = pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@every_module
def test_module_is_small_named_and_described(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= LONGEST_MODULE
    assert not {*file.relative_to(ROOT).parts, file.stem} & NO_NOUN
    assert ast.get_docstring(ast.parse(text)), "no module docstring"


@every_module
def test_functions_are_short(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


@every_module
def test_no_device_is_written_into_the_code(file: Path) -> None:
    for name, call in calls(ast.parse(file.read_text())):
        assert not name.endswith(".cuda"), f"line {call.lineno}: .cuda()"
        named = [k.value for k in call.keywords if k.arg == "device"] + (call.args if name.endswith((".to", "device")) else [])
        for value in (v.value for v in named if isinstance(v, ast.Constant)):
            assert not str(value).startswith("cuda"), f"line {call.lineno}: device '{value}'"


@every_module
def test_no_load_can_run_code_from_a_file(file: Path) -> None:
    for name, call in calls(ast.parse(file.read_text())):
        assert name not in ("eval", "exec"), f"line {call.lineno}: {name}"
        if name in ("torch.load", "torch.save"):
            assert file.name == "foreign.py", f"line {call.lineno}: {name} outside the importer"
            safe = [k for k in call.keywords if k.arg == "weights_only" and getattr(k.value, "value", False) is True]
            assert name == "torch.save" or safe, f"line {call.lineno}: torch.load without weights_only=True"
        pickles = [k for k in call.keywords if k.arg == "allow_pickle" and getattr(k.value, "value", True) is not False]
        assert not pickles, f"line {call.lineno}: allow_pickle"


@every_module
def test_nothing_is_swallowed_or_left_open(file: Path) -> None:
    text = file.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"
            cleans_up = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            caught = ast.unparse(node.type)
            assert cleans_up or caught not in ("Exception", "BaseException"), f"line {node.lineno}: keeps every error to itself"
    assert not re.findall(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", text)
