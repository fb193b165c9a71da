"""Terms by reference: what is found where, what their digest notices, and what is refused."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdlib.errors import ConfigError
from kdlib.kd.own import digest, load_terms, named, resolve

TERM = (
    "from kdlib.kd.term import Term\n"
    "def value(step):\n"
    "    return step.prediction.heads[0].rot.mean()\n"
    "MINE = Term('kd_mine', weight={weight}, value=value)\n"
)


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``put(name, text)`` writes a file into the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(name: str, text: str = TERM.format(weight=0.5)) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    yield write
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def test_references_mean_the_same_in_another_folder(
    put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put("mine.py"), put("pack/__init__.py", ""), put("pack/inner.py")
    found = named("mine.py:MINE, mine:MINE,pack.inner : MINE")
    places = ("mine.py", "mine.py", "pack/inner.py")
    assert found == tuple(f"{tmp_path}/{place}:MINE" for place in places)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/mine.py:MINE") == f"{tmp_path}/mine.py:MINE"
    monkeypatch.chdir("/")
    assert tuple(map(resolve, found)) == found and named("") == ()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("pack.inner:MINE") == f"{tmp_path}/pack/inner.py:MINE"


def test_a_comma_in_a_path_divides_nothing(put: Callable[..., Path], tmp_path: Path) -> None:
    put("mine.py"), put("lr 1,2/mine.py")
    given = f"mine.py:MINE,{tmp_path}/lr 1,2/mine.py:MINE"
    assert named(given) == (f"{tmp_path}/mine.py:MINE", f"{tmp_path}/lr 1,2/mine.py:MINE")


def test_an_installed_module_keeps_its_name(
    put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put("lib/site-packages/losses/__init__.py", ""), put("lib/site-packages/losses/terms.py")
    put("lib/site-packages/torch_like.py", "")
    monkeypatch.syspath_prepend(str(tmp_path / "lib/site-packages"))
    assert resolve("losses.terms:MINE") == "losses.terms:MINE"
    (term,) = load_terms(["losses.terms:MINE"])
    assert term is sys.modules["losses.terms"].MINE
    before = digest("losses.terms:MINE")
    put("lib/site-packages/losses/terms.py", TERM.format(weight=0.7))
    assert digest("losses.terms:MINE") != before


def test_a_file_is_run_as_it_is_now(put: Callable[..., Path]) -> None:
    """Also where it was changed within the second and kept its size, which Python's cache
    misses.
    """
    for weight in (0.5, 0.7, 0.9):
        path = put("mine.py", TERM.format(weight=weight))
        os.utime(path, (1e9, 1e9))
        assert load_terms(["mine.py:MINE"])[0].weight == weight
    assert not list(path.parent.rglob("*.pyc"))


def test_what_lies_beside_a_file_can_be_imported_and_hides_nothing(
    put: Callable[..., Path],
) -> None:
    put("beside_own.py", "WEIGHT = 0.3\n"), put("torch.py", "raise SystemExit\n")
    put("random.py", "import torch\nfrom beside_own import WEIGHT\n" + TERM.format(weight="WEIGHT"))
    import random

    assert load_terms(["random.py:MINE"])[0].weight == 0.3
    assert sys.modules["random"] is random


def test_each_term_has_the_helper_of_its_own_folder(put: Callable[..., Path]) -> None:
    for folder, weight in (("one", 0.2), ("two", 0.3)):
        put(f"{folder}/strength.py", f"WEIGHT = {weight}\n")
        put(f"{folder}/term.py", "from strength import WEIGHT\n" + TERM.format(weight="WEIGHT"))
    named = ("one/term.py:MINE", "two/term.py:MINE", "one/term.py:MINE")
    assert [load_terms([one])[0].weight for one in named] == [0.2, 0.3, 0.2]
    put("one/strength.py", "WEIGHT = 0.9\n")
    assert load_terms(["one/term.py:MINE"])[0].weight == 0.9, "as it is now"


def test_a_package_of_ones_own_may_import_relatively(put: Callable[..., Path]) -> None:
    put("own_pack/__init__.py", ""), put("own_pack/numbers/__init__.py", "WEIGHT = 0.2\n")
    put("own_pack/terms.py", "from .numbers import WEIGHT\n" + TERM.format(weight="WEIGHT"))
    assert load_terms(["own_pack/terms.py:MINE"])[0].weight == 0.2
    assert load_terms(["own_pack.terms:MINE"])[0].weight == 0.2


@pytest.mark.parametrize("edited", ["mine.py", "one.py", "pack/__init__.py", "pack/two.py"])
def test_the_digest_follows_the_source_and_what_it_imports(
    put: Callable[..., Path], tmp_path: Path, edited: str
) -> None:
    sources = {
        "mine.py": "import one, os, torch\n" + TERM.format(weight=0.5),
        "one.py": "def late():\n    from pack import two\n",
        "pack/__init__.py": "from . import two\n",
        "pack/two.py": "import mine\n",
        "other.py": "x = 1\n",
        "kdlib/__init__.py": "a folder called kdlib is never one's own\n",
    }
    for folder in ("here", "there"):
        for name, text in sources.items():
            put(f"{folder}/{name}", text)
    before = digest(f"{tmp_path}/here/mine.py:MINE")
    assert before.startswith("MINE:") and digest("there/mine.py:MINE") == before
    put("here/other.py", "x = 2\n")
    assert digest("here/mine.py:MINE") == before
    put(f"here/{edited}", sources[edited] + "# another\n")
    assert digest("here/mine.py:MINE") != before
    assert digest("there/mine.py:OTHER") != before


@pytest.mark.parametrize(
    ("reference", "text", "words"),
    [
        ("mine.py", "", "term 'mine.py' is neither FILE.py:NAME nor MODULE:NAME"),
        ("mine.py:MINE,", "", "term '' is neither FILE.py:NAME"),
        ("mine.py:a b", "", "term 'mine.py:a b' is neither"),
        ("no.py:MINE", "", "HERE/no.py does not exist"),
        ("sub/mine:MINE", "", "HERE/sub/mine does not exist"),
        (".:MINE", "", "module . was not found"),
        ("no_such_module:MINE", "", "module no_such_module was not found; name a file"),
        ("math:pi", "", "module math has no Python source; name a file"),
        ("mine.py:OTHER", None, "HERE/mine.py has no 'OTHER'; its terms are: MINE"),
        ("mine.py:MINE", "", "HERE/mine.py has no 'MINE'; its terms are: none"),
        ("mine.py:value", None, "value in HERE/mine.py is of type function; it must be a kdlib"),
        ("mine.py:MINE,mine:MINE", None, "term MINE in HERE/mine.py is named twice"),
        ("mine.py:MINE", "\nx = (\n", "HERE/mine.py, line 2: SyntaxError"),
        ("mine.py:MINE", "\nimport no_such_module\n", "HERE/mine.py, line 2: ModuleNotFoundError"),
        ("mine.py:MINE", "x = 1\n\ny = 1 / 0\n", "HERE/mine.py, line 3: ZeroDivisionError"),
        ("mine.py:MINE", "raise SystemExit(0)", "HERE/mine.py, line 1: SystemExit: 0"),
        ("mine.py:MINE", TERM.format(weight=-1), "line 4: term 'kd_mine' has weight -1"),
        ("mine.py:MINE", TERM.format(weight="1e999"), "has weight inf"),
        (
            "mine.py:MINE",
            TERM.format(weight=1).replace("=value)", "=0.5)"),
            "line 4: the value of term 'kd_mine' is of type float",
        ),
    ],
)
def test_what_is_refused_is_told_in_one_line(
    put: Callable[..., Path], tmp_path: Path, reference: str, text: str | None, words: str
) -> None:
    put("mine.py", TERM.format(weight=0.5) if text is None else text)
    sentence = re.escape(words.replace("HERE", str(tmp_path)))
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_terms(named(reference))
    assert "\n" not in str(caught.value)
