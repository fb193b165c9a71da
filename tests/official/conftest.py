"""The Python that has Waymo's own package; without one these tests are skipped, unless one was
promised by the environment.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdlib.tools.judge.official import VARIABLE, OfficialError, find_python


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.official)


@pytest.fixture(scope="session")
def official_python():
    try:
        return find_python()
    except OfficialError as error:
        if os.environ.get(VARIABLE):
            raise
        pytest.skip(str(error))
