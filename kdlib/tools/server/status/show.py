"""Shows how runs stand: as a table for a terminal, as a page that loads nothing, or as JSON; once
or again and again.
"""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import numpy as np
from markupsafe import Markup

from kdlib import records
from kdlib.errors import ConfigError
from kdlib.lab.folders import PROJECT
from kdlib.lab.page import render_page
from kdlib.tools.server.status.scan import RunStatus, Training, scan_runs

# the words stand beside them
SIGNS = {"done": "✓", "running": "▶", "failed": "✗", "stopped": "■", "waiting": "·"}
FEW = 6  # trainings that are done and still worth a line each
_COLUMNS = "    {:1} {:8}{:34.34} {:>11} {:>8} {:>8} {:>8} {} {:.90}"
_WIDTH, _HEIGHT, _MARGIN, _POINTS = 110, 26, 3, 80  # of a sparkline, in pixels


def show_status(
    root: Path | None = None,
    out: Path | None = None,
    watch: float | None = None,
    as_json: bool = False,
) -> None:
    """Say how all runs in a folder (of runs, a run or a training; default reports/runs) stand, once
    or every ``watch`` seconds.

    They are printed as a table, with a page in ``out`` or the folder's ``status.html``, or as JSON,
    without a page unless ``out`` asks for one.

    Raises:
        ConfigError: If the folder does not exist, or ``watch`` is no time.
    """
    if watch is not None and watch <= 0:
        raise ConfigError(f"--watch {watch:g} must be above 0 seconds")
    where = root or PROJECT / "reports" / "runs"
    target = out or (None if as_json else where / "status.html")
    while True:
        runs = scan_runs(where)
        if target is not None:
            records.write_bytes(target, status_page(runs, watch).encode())
        if as_json:
            print(json.dumps({"runs": [asdict(run) for run in runs]}, indent=2), flush=True)
        else:
            print(f"{status_table(runs)}\n\npage: {target}", flush=True)
        if watch is None:
            return
        time.sleep(watch)


def status_table(runs: Sequence[RunStatus]) -> str:
    """Return all runs as text: a head, the stages, and a line for each training."""
    blocks = []
    for run in runs:
        driver = f", driver {run.process}" if run.process else ""
        data = ", simulated data" if run.simulated else ""
        lines = [
            (
                f"{SIGNS[run.state]} {run.name}: {run.state} (profile "
                f"{run.profile or 'unknown'}{data}{driver})"
            )
        ]
        if run.stages:
            lines.append(
                "    " + "  ".join(f"{SIGNS[stage.state]} {stage.name}" for stage in run.stages)
            )
        if run.says and run.state != "done":
            lines.append(f"    {run.says[:160]}")
        if run.trainings:
            lines.append(
                _COLUMNS.format(
                    "", "state", "training", "step", "loss", "frames", "left", "", ""
                ).rstrip()
            )
            more = [training for training in run.trainings if training.state == "done"][FEW:]
            lines += [_row(training) for training in run.trainings if training not in more]
            if more:
                lines.append(f"    {SIGNS['done']} done    and {len(more)} more")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) or "no runs"


def _row(training: Training) -> str:
    loss = f"{training.losses[-1]:.4g}" if training.losses else "–"
    speed = f"{training.speed:.1f}/s" if training.speed is not None else "–"
    steps = f"{training.step}/{training.steps}" if training.steps else "–"
    who = f"process {training.process}" if training.process else ""
    says = training.says if training.state in ("failed", "stopped") else ""
    state, left = training.state, duration(training.left)
    return _COLUMNS.format(
        SIGNS[state], state, training.name, steps, loss, speed, left, who, says
    ).rstrip()


def status_page(runs: Sequence[RunStatus], refresh: float | None = None) -> str:
    """Return the page of runs; a browser loads it anew after ``refresh`` seconds."""
    counts = Counter(run.state for run in runs)
    summary = ", ".join(f"{count} {state}" for state, count in counts.items()) or "none"
    return render_page(
        "tools/server/status/status.html",
        policy="default-src 'none'; style-src 'unsafe-inline'",
        refresh=max(1, round(refresh)) if refresh else None,
        title=f"Runs: {summary}",
        banner="Runs on simulated data are marked so."
        if any(run.simulated for run in runs)
        else "",
        subtitle=(
            f"{summary}. As of {time.strftime('%Y-%m-%d %H:%M:%S')} on {socket.gethostname()}."
        ),
        runs=runs,
        signs=SIGNS,
        few=FEW,
        duration=duration,
        sparkline=sparkline,
    )


def duration(seconds: float | None) -> str:
    """Return seconds as hours, minutes and seconds; a dash for None."""
    return "–" if seconds is None else str(timedelta(seconds=round(seconds)))


def sparkline(losses: Sequence[float]) -> Markup:
    """Return the course of a loss as a small drawing; nothing for fewer than two values."""
    if len(losses) < 2:
        return Markup("")
    means = np.array(
        [stretch.mean() for stretch in np.array_split(losses, min(len(losses), _POINTS))]
    )
    xs = np.linspace(_MARGIN, _WIDTH - _MARGIN, len(means))
    # of a picture, downwards
    ys = np.interp(means, (means.min(), means.max()), (_HEIGHT - _MARGIN, _MARGIN))
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys))
    label = f"loss from {losses[0]:.4g} to {losses[-1]:.4g}"
    return Markup(
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{label}"><title>{label}</title>'
        f'<polyline points="{points}"/><circle cx="{xs[-1]:.1f}" cy="{ys[-1]:.1f}" r="2.2"/></svg>'
    )
