"""The house rules a program can check: small modules, short functions, no device names, no unsafe
loads, nothing swallowed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXTS = {
    str(file.relative_to(ROOT)): file.read_text() for file in sorted((ROOT / "kdlib").rglob("*.py"))
}
TREES = {name: ast.parse(text) for name, text in TEXTS.items()}
NO_NOUN = {"utils", "util", "helpers", "helper", "common", "misc"}
LONGEST_MODULE, LONGEST_FUNCTION = 400, 60  # lines


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call of the package: where it stands, what is called, the call."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield f"{name}:{node.lineno}", ast.unparse(node.func), node


def test_modules_are_small_named_and_described() -> None:
    assert not [name for name, text in TEXTS.items() if len(text.splitlines()) > LONGEST_MODULE]
    assert not [name for name in TEXTS if {*name.removesuffix(".py").split("/")} & NO_NOUN]
    assert not [name for name, tree in TREES.items() if not ast.get_docstring(tree)]


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function without its docstring, which may say as much as callers need."""
    words = node.body[0] if ast.get_docstring(node) else None
    said = words.end_lineno - words.lineno + 1 if words and words.end_lineno else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - said


def test_functions_are_short() -> None:
    functions = [
        (f"{name}: {node.name}", code_lines(node))
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    assert not [(where, lines) for where, lines in functions if lines > LONGEST_FUNCTION]


def test_no_device_is_written_into_the_code() -> None:
    for where, called, call in calls():
        assert not called.endswith(".cuda"), where
        named = [k.value for k in call.keywords if k.arg == "device"] + (
            call.args if called.endswith((".to", "device")) else []
        )
        for value in (v.value for v in named if isinstance(v, ast.Constant)):
            assert not str(value).startswith("cuda"), where


def test_no_load_can_run_code_from_a_file() -> None:
    for where, called, call in calls():
        assert called not in ("eval", "exec"), where
        if called in ("torch.load", "torch.save"):
            assert "/foreign.py:" in where, f"{where}: {called} outside the importer"
            safe = [
                k
                for k in call.keywords
                if k.arg == "weights_only" and getattr(k.value, "value", False) is True
            ]
            assert called == "torch.save" or safe, f"{where}: torch.load without weights_only=True"
        pickles = [
            k
            for k in call.keywords
            if k.arg == "allow_pickle" and getattr(k.value, "value", True) is not False
        ]
        assert not pickles, f"{where}: allow_pickle"


def test_nothing_is_swallowed_or_left_open() -> None:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                where = f"{name}:{node.lineno}"
                assert node.type is not None, f"{where}: bare except"
                last = node.body[-1]
                told = isinstance(last, ast.Raise) and (
                    last.exc is None or isinstance(last.cause, ast.Name)
                )
                caught = ast.unparse(node.type)
                assert told or caught not in ("Exception", "BaseException"), (
                    f"{where}: keeps every error to itself"
                )
        assert not re.findall(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", TEXTS[name]), name
