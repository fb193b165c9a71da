"""Terms of one's own by reference, ``FILE.py:NAME`` or ``MODULE:NAME``: where they lie, what they
rest on, and the terms themselves.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from kdlib.errors import ConfigError, KdlibError

if TYPE_CHECKING:
    from kdlib.kd.term import Term  # torch, which who only reads a job does without

_INSTALLED = ("site-packages", "dist-packages")


def named(text: str) -> tuple[str, ...]:
    """Return the references of a comma-separated text, resolved; ConfigError as :func:`resolve`."""
    # a comma may also be part of a path, which ends with its colon
    found = re.findall(r"[^:]*:[^,]*|.+", text)
    return tuple(resolve(one.removeprefix(",")) for one in found)


def resolve(reference: str) -> str:
    """Return a reference that means the same in a process with another working folder.

    Files become absolute, modules their file; an installed module, which every process of this
    Python finds, keeps its name.

    Raises:
        ConfigError: If it is no reference, or its file or module is not there.
    """
    where, name = _split(reference)
    file = _file(where)
    return f"{where if _is_installed(where, file) else file}:{name}"


def digest(reference: str) -> str:
    """Return the term's name and a digest of its source: the file, and what it imports from the
    folder or package it lies in. Its place is no part of it, nor is data it reads.

    Raises:
        ConfigError: If it is not there, or a file is no Python.
    """
    where, name = _split(reference)
    total = hashlib.sha256()
    for file in _sources(_file(where)):
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return f"{name}:{total.hexdigest()}"


def load_terms(references: Sequence[str]) -> tuple[Term, ...]:
    """Run the files that are named, each once and as it is now, and return the terms.

    Raises:
        ConfigError: If a file or module is not there or fails, has no term of that name, or one is
            named twice; the message names file and line.
    """
    from kdlib.kd.term import Term

    modules: dict[Path, ModuleType] = {}
    terms: list[Term] = []
    for reference in references:
        where, name = _split(reference)
        file = _file(where)
        if file not in modules:
            modules[file] = _run(file, where if _is_installed(where, file) else None)
        members = vars(modules[file])
        found = members.get(name)
        if name not in members:
            there = [key for key, value in members.items() if isinstance(value, Term)]
            raise ConfigError(
                f"{file} has no '{name}'; its terms are: {', '.join(there) or 'none'}"
            )
        if not isinstance(found, Term):
            raise ConfigError(
                f"{name} in {file} is of type {type(found).__name__}; it must be a "
                "kdlib.kd.term.Term, like Term('kd_mine', weight=0.5, value=FUNCTION)"
            )
        if any(found is term for term in terms):
            raise ConfigError(f"term {name} in {file} is named twice")
        terms.append(found)
    return tuple(terms)


def blamed(error: BaseException, file: Path) -> str:
    """Return in one line where in a file an error arose, and what it says."""
    place, line = str(file), None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == str(file):
            line = number  # the innermost one stays
    if isinstance(error, SyntaxError) and error.filename:
        place, line = error.filename, error.lineno
    kind = "" if isinstance(error, KdlibError) else type(error).__name__
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    words = ": ".join(filter(None, (kind, said.partition("\n")[0])))
    return f"{place}{f', line {line}' if line else ''}: {words}"


def source_file(reference: str) -> Path:
    """Return the file a reference's term lies in; ConfigError if it is not there."""
    return _file(_split(reference)[0])


def _split(reference: str) -> tuple[str, str]:
    where, _, name = (part.strip() for part in reference.rpartition(":"))
    if not where or not name.isidentifier():
        raise ConfigError(
            f"term '{reference}' is neither FILE.py:NAME nor MODULE:NAME, like my_terms.py:HEADING"
        )
    return where, name


def _is_path(where: str) -> bool:
    return where.endswith(".py") or os.sep in where


def _is_installed(where: str, file: Path) -> bool:
    return not _is_path(where) and bool({*_INSTALLED} & {*file.parts})


def _file(where: str) -> Path:
    """Return the absolute path of a file or of a module, which is looked for in the working folder
    first.
    """
    if _is_path(where):
        file = Path(os.path.abspath(os.path.expanduser(where)))
        if file.suffix != ".py" or not file.is_file():
            what = "is no Python file" if file.exists() else "does not exist"
            raise ConfigError(f"{file} {what}; name the file that holds the term, FILE.py:NAME")
        return file
    here = Path.cwd().joinpath(*where.split("."))
    for file in (here.with_name(f"{here.name}.py"), here / "__init__.py"):
        if file.is_file():
            return file
    try:
        spec = importlib.util.find_spec(where)  # runs the packages it lies in
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"module {where} was not found ({type(error).__name__}: {error}); name its file, like "
            "path/my_terms.py:HEADING"
        ) from error
    if spec is None or not (spec.origin or "").endswith(".py"):
        what = "was not found" if spec is None else "has no Python source"
        raise ConfigError(
            f"module {where} {what}; name a file, like path/my_terms.py:HEADING, or install it"
        )
    return Path(os.path.abspath(str(spec.origin)))


def _root(file: Path) -> Path:
    """Return the folder from which a file is imported: that of its outermost package."""
    root = file.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    return root


_ROOTS: set[Path] = set()  # folders whose files were run


class _Fresh(SourceFileLoader):
    """Runs the source as it is: a cached compilation is known by size and second alone."""

    def path_stats(self, path: str) -> dict[str, int]:  # type: ignore[override]
        raise OSError("not to be cached")


def _run(file: Path, installed: str | None) -> ModuleType:
    """Run a file as a module, or import it under the name it is installed by; ConfigError if it
    fails.
    """
    try:
        return _fresh(file) if installed is None else importlib.import_module(installed)
    except (Exception, SystemExit) as error:
        raise ConfigError(blamed(error, file)) from error


def _fresh(file: Path) -> ModuleType:
    """Run a file as it is now; what lies beside it can be imported from it, but comes last."""
    root = _root(file)
    parts = file.relative_to(root).with_suffix("").parts
    package = file.name == "__init__.py"
    # A file that is in no package must not pass for a module of the same name.
    name = ".".join(parts[:-1] if package else parts) if len(parts) > 1 else f"own_{parts[0]}"
    _forget(root)
    if str(root) not in sys.path:
        sys.path.append(str(root))
    spec = importlib.util.spec_from_file_location(
        name,
        file,
        loader=_Fresh(name, str(file)),
        submodule_search_locations=[str(file.parent)] if package else None,
    )
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} cannot be run as a module")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _forget(root: Path) -> None:
    """Forget modules that lie beside terms and have a name that is found beside this one, too: they
    are another folder's, or an older text.
    """
    beside = {path.name.removesuffix(".py") for path in root.iterdir()}
    for name, module in list(sys.modules.items()):
        place = getattr(module, "__file__", None)
        if place and name.partition(".")[0] in beside and _root(Path(place)) in _ROOTS:
            del sys.modules[name]
    for other in _ROOTS & set(map(Path, sys.path)):
        sys.path.remove(str(other))  # this one's come first
    _ROOTS.add(root)


def _sources(file: Path) -> list[Path]:
    """Return a file and whatever it imports from beside it, directly or not."""
    root, found = _root(file), [file]
    own = file.relative_to(root).parts[0].removesuffix(".py")
    for path in found:  # which grows
        try:
            tree = ast.parse(path.read_bytes(), str(path))
        except (SyntaxError, ValueError) as error:
            raise ConfigError(blamed(error, path)) from error
        for node in ast.walk(tree):
            for start, name in _imported(node, path, root):
                top = name.partition(".")[0]
                library = top == "kdlib" or (root.name in _INSTALLED and top != own)
                if start == root and library:
                    continue
                found += [each for each in _modules(start, name) if each not in found]
    return found


def _imported(node: ast.AST, path: Path, root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the dotted names that a statement imports, each with the folder it begins in."""
    if isinstance(node, ast.Import):
        yield from ((root, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        start = path.parents[min(node.level, len(path.parents)) - 1] if node.level else root
        for alias in node.names:
            yield start, ".".join(filter(None, (node.module, alias.name)))


def _modules(start: Path, name: str) -> Iterator[Path]:
    """Yield the files that a dotted name may run: its packages and itself, where they are there."""
    parts = name.split(".")
    for count in range(len(parts) + 1):
        place = start.joinpath(*parts[:count])
        candidates = [place / "__init__.py"]
        if count:
            candidates.append(place.with_name(f"{place.name}.py"))
        yield from (file for file in candidates if file.is_file())
