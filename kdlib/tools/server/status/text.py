"""Runs go in, lines of text for a terminal come out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from kdlib.tools.server.status.scan import RunStatus, Training

SIGNS = {"done": "✓", "running": "▶", "failed": "✗", "stopped": "■", "waiting": "·"}  # the words stand beside them
_BARS = "▁▂▃▄▅▆▇█"
_NAME, _SAYS = 34, 90  # characters
FEW = 6  # trainings that are done and still worth a line each


def duration(seconds: float | None) -> str:
    """Return seconds as hours, minutes and seconds; a dash for None."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def thinned(losses: Sequence[float], count: int) -> list[float]:
    """Return at most so many means of equally long stretches."""
    if len(losses) <= count:
        return list(losses)
    edges = [round(number * len(losses) / count) for number in range(count + 1)]
    return [sum(losses[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]


def bars(losses: Sequence[float], count: int = 12) -> str:
    """Return the course of a loss as a row of blocks, lowest to highest."""
    values = thinned(losses, count)
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    return "".join(_BARS[round((value - low) / (high - low or 1) * (len(_BARS) - 1))] for value in values)


def _row(one: Training) -> str:
    loss = f"{one.losses[-1]:.4g}" if one.losses else "–"
    speed = f"{one.speed:.1f}/s" if one.speed is not None else "–"
    steps = f"{one.step}/{one.steps}" if one.steps else "–"
    who = f"process {one.process}" if one.process else ""
    says = one.says if one.state in ("failed", "stopped") else ""
    cells = (
        f"    {SIGNS[one.state]} {one.state:8}{one.name[:_NAME]:{_NAME}} {steps:>11} {loss:>8} {bars(one.losses):12} "
        f"{speed:>8} {duration(one.left):>8} {who} {says[:_SAYS]}"
    )
    return cells.rstrip()


def text(runs: Sequence[RunStatus]) -> str:
    """Return all runs: a head, the stages, and a line for each training."""
    blocks = []
    for run in runs:
        driver = f", driver {run.process}" if run.process else ""
        data = ", simulated data" if run.simulated else ""
        lines = [f"{SIGNS[run.state]} {run.name}: {run.state} (profile {run.profile or 'unknown'}{data}{driver})"]
        if run.stages:
            lines.append("    " + "  ".join(f"{SIGNS[stage.state]} {stage.name}" for stage in run.stages))
        if run.says and run.state != "done":
            lines.append(f"    {run.says[:160]}")
        if run.trainings:
            lines.append(
                f"      {'state':8}{'training':{_NAME}} {'step':>11} {'loss':>8} {'':12} {'frames':>8} {'left':>8}",
            )
            done = [one for one in run.trainings if one.state == "done"]
            shown = [one for one in run.trainings if one.state != "done"] + done[:FEW]
            lines += [_row(one) for one in shown]
            if len(done) > FEW:
                lines.append(f"    {SIGNS['done']} done    and {len(done) - FEW} more")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) or "no runs"
