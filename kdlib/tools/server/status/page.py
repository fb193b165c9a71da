"""Runs go in, one self-contained HTML page comes out; it loads nothing, and may reload itself."""

from __future__ import annotations

import html
import socket
import time
from collections.abc import Sequence

from kdlib.lab.page_style import STYLE
from kdlib.tools.server.status.scan import RunStatus, Stage, Training
from kdlib.tools.server.status.text import FEW, SIGNS, duration, thinned

_WIDTH, _HEIGHT, _POINTS = 110, 26, 80  # of a sparkline
_STYLE = """
.page { display:block; max-width:76rem; }
h2 { display:flex; flex-wrap:wrap; align-items:baseline; gap:.4rem .8rem; }
h2 small { font-size:.85rem; font-weight:400; letter-spacing:0; color:var(--soft); }
.badge { display:inline-block; font-size:.8rem; font-weight:650; letter-spacing:0; border-radius:999px; padding:.05rem .6rem;
  white-space:nowrap; border:1px solid currentColor; }
.done { color:var(--good); } .running { color:var(--accent); } .failed { color:var(--bad); } .stopped { color:var(--open); }
.waiting { color:var(--soft); }
.stages { display:flex; flex-wrap:wrap; gap:.5rem; list-style:none; margin:.4rem 0 1rem; padding:0; }
.stages li { border:1px solid var(--line); border-left:4px solid currentColor; border-radius:6px; padding:.25rem .7rem;
  background:var(--wash); font-size:.86rem; }
.stages li.running { background:#e8f3fa; } .stages li.failed { background:#fdf5f0; }
.stages b { color:var(--ink); font-weight:600; } .stages span { display:block; font-size:.78rem; }
table { width:100%; } td { vertical-align:middle; } td.log { color:var(--soft); font-size:.84rem; overflow-wrap:anywhere; }
td small { display:block; color:var(--soft); font-size:.8rem; }
.meter { display:block; width:7rem; height:.4rem; border-radius:.2rem; background:var(--line); margin-top:.25rem;
  overflow:hidden; }
.meter i { display:block; height:100%; background:var(--accent); }
summary { cursor:pointer; color:var(--accent); font-size:.92rem; }
svg { display:block; } svg polyline { fill:none; stroke:var(--accent); stroke-width:1.5; } svg circle { fill:var(--accent); }
"""


def _badge(state: str) -> str:
    return f'<span class="badge {state}">{SIGNS[state]} {state}</span>'


def sparkline(losses: Sequence[float]) -> str:
    """Return the course of a loss as a small drawing; nothing for fewer than two values."""
    values = thinned(losses, _POINTS)
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    xs = [3 + number * (_WIDTH - 6) / (len(values) - 1) for number in range(len(values))]
    ys = [3 + (high - value) / (high - low or 1) * (_HEIGHT - 6) for value in values]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys))
    label = f"loss from {losses[0]:.4g} to {losses[-1]:.4g}"
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{label}"><title>{label}</title>'
        f'<polyline points="{points}"/><circle cx="{xs[-1]:.1f}" cy="{ys[-1]:.1f}" r="2.2"/></svg>'
    )


def _stage(stage: Stage) -> str:
    return f'<li class="{stage.state}"><b>{html.escape(stage.name)}</b><span>{SIGNS[stage.state]} {stage.state}</span></li>'


def _row(one: Training) -> str:
    steps = "–"
    if one.steps:
        share = f"{100 * one.step / one.steps:.0f}"
        steps = f'{one.step} / {one.steps}<span class="meter"><i style="width:{share}%"></i></span>'
    loss = f"{one.losses[-1]:.4g}" if one.losses else "–"
    speed = f"{one.speed:.1f}" if one.speed is not None else "–"
    alive = f"process {html.escape(one.process)}<small>alive</small>" if one.process else "none"
    cells = (
        f"<td>{html.escape(one.name)}<small>{html.escape(one.folder)}</small></td>",
        f"<td>{_badge(one.state)}</td>",
        f'<td class="number">{steps}</td>',
        f'<td class="number">{loss}</td><td>{sparkline(one.losses)}</td>',
        f'<td class="number">{speed}</td>',
        f'<td class="number">{duration(one.seconds) if one.steps else "–"}</td>',
        f'<td class="number">{duration(one.left)}</td>',
        f"<td>{alive}</td>",
        f'<td class="log">{html.escape(one.says)}</td>',
    )
    return f"<tr>{''.join(cells)}</tr>"


def _table(trainings: Sequence[Training]) -> str:
    names = ("Training", "State", "Step", "Loss", "", "Frames/s", "Worked", "Left", "Process", "Last line of its log")
    numbers = {"Step", "Loss", "Frames/s", "Worked", "Left"}
    head = "".join(f'<th class="number">{name}</th>' if name in numbers else f"<th>{name}</th>" for name in names)
    rows = "".join(_row(one) for one in trainings)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _section(run: RunStatus) -> str:
    facts = [f"profile {run.profile}" if run.profile else "", "simulated data" if run.simulated else "", run.folder]
    facts.append(f"driver: process {run.process}, alive" if run.process else "no driver at work")
    parts = [
        f"<h2>{html.escape(run.name)} {_badge(run.state)} <small>{html.escape(' · '.join(filter(None, facts)))}</small></h2>"
    ]
    if run.stages:
        parts.append(f'<ul class="stages">{"".join(_stage(stage) for stage in run.stages)}</ul>')
    if run.says:
        parts.append(f'<p class="note">{html.escape(run.says)}</p>')
    done = [one for one in run.trainings if one.state == "done"]
    busy = [one for one in run.trainings if one.state != "done"]
    if len(done) <= FEW:
        busy, done = [*busy, *done], []
    parts += [_table(busy)] if busy else []
    parts += [f"<details><summary>{len(done)} trainings done</summary>{_table(done)}</details>"] if done else []
    return "\n".join(parts)


def page(runs: Sequence[RunStatus], refresh: float | None = None) -> str:
    """Return the page.

    Args:
        runs: In the order of :func:`kdlib.tools.server.status.scan.scan`.
        refresh: Seconds after which the browser shall load it anew.
    """
    counts = {state: sum(run.state == state for run in runs) for state in SIGNS}
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none"
    again = f'<meta http-equiv="refresh" content="{max(1, round(refresh))}">' if refresh else ""
    banner = '<div class="banner">Runs on simulated data are marked so.</div>' if any(run.simulated for run in runs) else ""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">{again}
<title>Runs: {summary}</title><style>{STYLE}{_STYLE}</style></head><body>{banner}<div class="page"><main>
<h1>Runs</h1><p class="lead">{summary}. As of {time.strftime("%Y-%m-%d %H:%M:%S")} on {html.escape(socket.gethostname())}.</p>
{"".join(_section(run) for run in runs)}
<footer>Stopped: the process is gone before its work was done; the same command goes on from the last checkpoint.</footer>
</main></div></body></html>
"""
