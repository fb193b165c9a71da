"""A folder of runs goes in; a table is printed and the page written, once or again and again."""

from __future__ import annotations

import json
import time
from pathlib import Path

from kdlib import records
from kdlib.errors import ConfigError
from kdlib.lab.execute import PROJECT
from kdlib.tools.server.status.page import page
from kdlib.tools.server.status.scan import scan
from kdlib.tools.server.status.text import text

PAGE = "status.html"


def show(root: Path | None = None, out: Path | None = None, watch: float | None = None, as_json: bool = False) -> None:
    """Say how all runs stand.

    Args:
        root: Folder of runs, one run, or one training; reports/runs if None.
        out: The page to write; ``status.html`` in the folder if None, and none at all with JSON.
        watch: Seconds to the next look, for ever; None looks once.
        as_json: Print JSON instead of the table.

    Raises:
        ConfigError: If the folder does not exist, or ``watch`` is no time.
    """
    if watch is not None and watch <= 0:
        raise ConfigError(f"--watch {watch:g} must be above 0 seconds")
    where = root or PROJECT / "reports" / "runs"
    target = out or (None if as_json else where / PAGE)
    while True:
        runs = scan(where)
        if target is not None:
            records.write_bytes(target, page(runs, watch).encode())
        if as_json:
            print(json.dumps({"runs": [run.to_dict() for run in runs]}, indent=2), flush=True)
        else:
            print(f"{text(runs)}\n\npage: {target}", flush=True)
        if watch is None:
            return
        time.sleep(watch)
