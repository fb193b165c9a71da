"""``python -m kdlib evaluate``: two Parquet files scored, on request beside Waymo's numbers and
with the leaderboard's file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdlib.metric.box_tables import TableFile, check_waymo_types
from kdlib.metric.loading import load_boxes
from kdlib.metric.waymo_metrics import EvalResult, evaluate_loaded
from kdlib.tools.judge.hints import count_boxes, find_hints
from kdlib.tools.judge.leaderboard import export_objects
from kdlib.tools.judge.official import find_python
from kdlib.tools.judge.side_by_side import SideBySide, compare_with_official


@dataclass(frozen=True)
class Evaluation:
    """An evaluation with what was asked for beside it."""

    result: EvalResult
    counts: str  # the boxes of both sides, by class
    hints: tuple[str, ...] = ()  # sentences on what may be wrong with the tables
    comparison: SideBySide | None = None  # with the official metric
    exported: int | None = None  # boxes in the leaderboard's file

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as one flat JSON object; with a comparison also that, under
        ``official``.
        """
        metrics: dict[str, Any] = self.result.to_dict()
        return (
            metrics
            if self.comparison is None
            else {**metrics, "official": self.comparison.to_dict()}
        )

    def text(self) -> str:
        """Return all of it to be read: the official numbers, where asked for, replace the plain
        table.
        """
        lines = [self.counts, "", self.result.table()]
        if self.comparison:
            lines += ["", self.comparison.table()]
        if self.exported is not None:
            lines += ["", f"{self.exported:,} boxes written for the leaderboard"]
        if self.hints:
            lines += ["", *(f"hint: {hint}" for hint in self.hints)]
        return "\n".join(lines)


def evaluate(
    predictions: str | Path,
    truth: str | Path,
    *,
    workers: int = 1,
    official: bool = False,
    python: str | Path | None = None,
    export: str | Path | None = None,
    all_classes: bool = False,
) -> Evaluation:
    """Evaluate two Parquet files, of predicted and labelled boxes, with Waymo's metric, all classes
    and distances.

    On request the official metric runs on the very same boxes in a Python that has it (see
    :func:`kdlib.tools.judge.official.find_python`), and all predictions are exported as the
    leaderboard's ``Objects`` file.

    Raises:
        DataError: If a table makes no sense.
        OfficialError: If the official metric is asked for and cannot be had.
    """
    if official:
        find_python(python)  # before the work, not after it
    names = (f"predictions file '{predictions}'", f"ground-truth file '{truth}'")
    files = TableFile.open(predictions, "predictions"), TableFile.open(truth, "ground-truth")
    if official or export:
        check_waymo_types(files[0].schema, names[0])
    loaded = load_boxes(*files, names=names)
    result = evaluate_loaded(loaded, workers=workers, keep_frames=False, all_classes=all_classes)
    comparison = (
        compare_with_official(loaded.boxes, workers=workers, python=python) if official else None
    )
    exported = export_objects(files[0], export, names[0]) if export else None
    counts = count_boxes(loaded.boxes, loaded.classes)
    hints = tuple(find_hints(loaded.boxes, loaded.classes))
    return Evaluation(result, counts, hints, comparison, exported)
