"""A finished run in; what the application of notebook 04 shows of it out: pictures, scenes, maps, the next frame worth a look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from matplotlib.figure import Figure

from kdlib import records
from kdlib.data.collate import collate
from kdlib.data.dataset import FrameDataset
from kdlib.errors import ConfigError, DataError
from kdlib.lab import profiles, scoring
from kdlib.lab.explore import maps
from kdlib.lab.explore.outcomes import judge_layers
from kdlib.lab.explore.ranking import Counted, count
from kdlib.lab.explore.scenes import NAMES, Scene, extent, frame_count, predicted, scene
from kdlib.lab.pipeline import Run, TrainedWeights, chosen_teacher, located, open_run
from kdlib.models.detector import CenterPoint
from kdlib.models.weights import load_weights
from kdlib.types import Batch, GroundTruth
from kdlib.viz.interactive import scene_figure
from kdlib.viz.layers import BoxLayer, select
from kdlib.viz.pair import GroundMap, Panel, contact_sheet, draw_pair
from kdlib.viz.widgets import JUMPS, LAYERS, MAPS, View, checked

TEACHER = "teacher"


class Studio:
    """The frames and models of one run; implements :class:`kdlib.viz.widgets.Source`.

    Models and predictions are loaded when they are first shown; only the last frame's answers are kept.
    """

    def __init__(self, run: Run, threshold: float = 0.5) -> None:
        """Open a run that notebooks 00 to 02 have finished.

        Raises:
            ConfigError: If one of them has not.
        """
        self.run, self.threshold = run, threshold
        rows = {f"{row['arm']}_seed{row['seed']}": row for row in run.result("02_distill_student")["students"]}
        self._weights = {name: located(row["weights"]) for name, row in rows.items()}
        self._arms = {TEACHER: TEACHER, **{name: str(row["arm"]) for name, row in rows.items()}}
        titles = {name: f"{NAMES.get(row['arm'], row['arm'])}, seed {row['seed']}" for name, row in rows.items()}
        self.models = {TEACHER: TEACHER, **titles}
        self.frame_count = frame_count(run)
        self._tables: dict[str, pa.Table] = {}
        self._counts: dict[str, Counted] = {}
        self._networks: dict[str, CenterPoint] = {}
        self._scene: tuple[int, Scene] | None = None
        self._batch: tuple[int, Batch] | None = None
        self._answers: dict[str, maps.Answer] = {}

    def start(self, frame: int = -1) -> View:
        """Return the teacher beside the distilled student, on the frame where distillation helped most (-1) or a given one."""
        view = View(max(frame, 0), TEACHER, self._first("full"), self.threshold)
        return view if frame >= 0 else replace(view, frame=int(self._order("helped", view)[0]))

    def name(self, view: View) -> str:
        """Return the frame's name."""
        return f"frame {view.frame}: {self._at(view.frame).frame_id}"

    def _title(self, view: View) -> str:
        return self._at(view.frame).frame_id + ("  (simulated data)" if self.run.profile.simulated is not None else "")

    def panels(self, view: View) -> tuple[Panel, Panel]:
        """Return both halves, judged and cut as chosen, with the maps asked for.

        Raises:
            BrowserError: If the view names what is not there.
            ConfigError: If the recipe has no such map.
        """
        view = checked(view, tuple(self.models), self.frame_count)
        left, right = (self._panel(view, model, index) for index, model in enumerate((view.left, view.right)))
        return left, right

    def draw(self, view: View, path: str | Path | None = None) -> Figure:
        """Return both models from above."""
        region = extent(self.run.profile.student_model)
        limits = "Waymo's" if view.iou is None else f"{view.iou:g}"
        note = f"score ≥ {view.min_score:.2f}, 3D IoU ≥ {limits}, {view.class_name or 'all classes'}"
        title, points = self._title(view), self._at(view.frame).points
        return draw_pair(points, self.panels(view), extent=region, title=title, note=note, path=path)

    def sheet(self, view: View, path: str | Path | None = None) -> Figure:
        """Return a view once for each map of its recipe: the static twin of switching them."""
        names = [name for name in MAPS[1:] if self.run.profile.kd.logit is not None or name != "pivotal positions"]
        return contact_sheet([self.draw(replace(view, map=name)) for name in names], path)

    def gallery(self, view: View, folder: Path) -> dict[str, str]:
        """Draw the first frame of every order as ``<order>.png``, and return what stands below it: the buttons' static twin."""
        found = {}
        for order in JUMPS:
            if len(self._order(order, view)):
                frame, sentence = self.jump(order, replace(view, frame=-1))
                self.draw(replace(view, frame=frame), folder / f"{order}.png")
                found[order] = f"{self.name(replace(view, frame=frame))}: {sentence}"
        return found

    def scene(self, view: View) -> Any:
        """Return both models in space, as a plotly figure."""
        view = replace(view, map="none")  # maps lie on the ground of the picture from above only
        return scene_figure(self._at(view.frame).points, self.panels(view), title=self._title(view))

    def jump(self, order: str, view: View) -> tuple[int, str]:
        """Return the frame after this one in an order of JUMPS, and a sentence about it; after the last comes the first.

        ``helped`` and ``hurt`` compare the first student trained alone with the one shown on the right, or the distilled one.

        Raises:
            ConfigError: If the run has no frame of that kind.
        """
        frames = self._order(order, view)
        if not len(frames):
            raise ConfigError(f"no frame where {JUMPS[order].removesuffix(' most')}: {view.right} is nowhere behind")
        at = np.flatnonzero(frames == view.frame)
        place = (int(at[0]) + 1) % len(frames) if len(at) else 0
        frame = int(frames[place])
        return frame, f"{JUMPS[order]}, {place + 1} of {len(frames)}: {self._sentence(order, view, frame)}"

    def _sentence(self, order: str, view: View, frame: int) -> str:
        if order == "hardest":
            return f"{int(self._count(view.right).missed[frame])} objects missed at a score of 0.3"
        first, second = (self._count(name) for name in self._compared(view))
        found = int(second.found[frame] - first.found[frame])
        wrong = int(second.false_alarms[frame] - first.false_alarms[frame])
        return f"{found:+d} found, {wrong:+d} false alarms against {self.models[self._compared(view)[0]]}, at a score of 0.3"

    def _order(self, order: str, view: View) -> np.ndarray:
        if order == "hardest":
            missed = self._count(view.right).missed
            return np.argsort(-missed, kind="stable")[: max(int((missed > 0).sum()), 1)]
        if order not in JUMPS:
            raise ConfigError(f"unknown order '{order}'; there are: {', '.join(JUMPS)}")
        first, second = (self._count(name).merit for name in self._compared(view))
        gain = (second - first) if order == "helped" else (first - second)
        return np.argsort(-gain, kind="stable")[: max(int((gain > 0).sum()), 1 if order == "helped" else 0)]

    def _compared(self, view: View) -> tuple[str, str]:
        first = self._first("alone")
        return first, view.right if view.right not in (first, TEACHER) else self._first("full")

    def _first(self, arm: str) -> str:
        """Return the first seed of an arm; the last student where the run has not trained that arm."""
        return next((name for name, own in self._arms.items() if own == arm), list(self.models)[-1])

    def _panel(self, view: View, model: str, index: int) -> Panel:
        frame, arm = self._at(view.frame), self._arms[model]
        boxes = predicted(self._table(model), frame.frame_id, view.min_score, arm)
        boxes = replace(boxes, name=f"{NAMES.get(arm, arm)}: found")
        truth, boxes = (select(layer, class_name=view.class_name) for layer in (frame.layers[0], boxes))
        judged = judge_layers(truth, boxes, view.iou)
        layers: tuple[BoxLayer, ...] = tuple(one for name, one in zip(LAYERS, _ordered(judged.layers)) if name in view.layers)
        ground = None if view.map == "none" else self._ground(view, model, index)
        return Panel(self.models[model], layers, str(judged), ground)

    def _ground(self, view: View, model: str, index: int) -> GroundMap:
        batch = self._sample(view.frame)
        if view.map == "heatmap":
            return maps.heat_map(self._answer(view.frame, model), view.class_name)
        if view.map == "BEV features":
            return maps.feature_map(self._answer(view.frame, model))
        learner = view.right if view.right != TEACHER else self._first("full")
        both, kd = (self._answer(view.frame, TEACHER), self._answer(view.frame, learner)), self.run.profile.kd
        if view.map == "pivotal positions":
            return maps.pivotal_positions(*both, batch, kd)
        return (maps.pull_mask if index and kd.logit is not None else maps.label_mask)(*both, batch, kd)

    def _at(self, frame: int) -> Scene:
        if self._scene is None or self._scene[0] != frame:
            self._scene = (frame, scene(self.run, frame))
        return self._scene[1]

    def _sample(self, frame: int) -> Batch:
        if self._batch is None or self._batch[0] != frame:
            model, split = self.run.profile.student_model, self.run.store.split("validation")
            interval, reach = self.run.profile.evaluation.interval, model.grid.point_range
            batch = collate([FrameDataset(split, model.class_names, interval, point_range=reach)[frame]])
            self._batch = (frame, replace(batch, truth=_inside(batch.truth, reach)))
            self._answers = {}
        return self._batch[1]

    def _answer(self, frame: int, model: str) -> maps.Answer:
        batch = self._sample(frame)
        if model not in self._answers:
            self._answers[model] = maps.ask(self._network(model), batch)
        return self._answers[model]

    def _trained(self, model: str) -> TrainedWeights:
        if model == TEACHER:
            return chosen_teacher(self.run)
        return TrainedWeights(self.run.profile.student_model, self._weights[model])

    def _network(self, model: str) -> CenterPoint:
        if model not in self._networks:
            trained = self._trained(model)
            network = CenterPoint(trained.model)
            load_weights(trained.weights, network)
            self._networks[model] = network.to(torch.device("cpu"))
        return self._networks[model]

    def _table(self, model: str) -> pa.Table:
        if model not in self._tables:
            self._tables[model] = scoring.predict_weights(self.run, model, self._trained(model))
        return self._tables[model]

    def _count(self, model: str) -> Counted:
        if model not in self._counts:
            self._counts[model] = count(self._table(model), scoring.truth(self.run), self.run)
        return self._counts[model]


def _inside(truth: GroundTruth, reach: tuple[float, ...]) -> GroundTruth:
    """Return the boxes a training would see: those centred within the range, the others as padding."""
    place = truth.boxes[..., :2]
    seen = ((place > place.new_tensor(reach[:2])) & (place < place.new_tensor(reach[3:5]))).all(dim=-1)
    return GroundTruth(truth.boxes * seen[..., None], truth.labels * seen)


def _ordered(layers: tuple[BoxLayer, ...]) -> tuple[BoxLayer, ...]:
    """Return judged layers in the order of LAYERS."""
    found, missed, hits, wrong = layers
    return found, hits, missed, wrong


def studios(run: Run, threshold: float = 0.5) -> dict[str, Callable[[], Studio]]:
    """Return the run, then its finished neighbours in the same folder, by name, each opened when it is called."""
    found: dict[str, Callable[[], Studio]] = {run.folder.name: partial(Studio, run, threshold)}
    for result in sorted(run.folder.parent.glob("*/02_distill_student/result.json")):
        folder = result.parents[2]
        other = _neighbour(folder, result, run)
        if folder.name not in found and other is not None:
            found[folder.name] = partial(Studio, other, threshold)
    return found


def _neighbour(folder: Path, result: Path, run: Run) -> Run | None:
    """Return the run in a folder, or None where its profile is unknown here or its store is elsewhere."""
    try:
        profile = str(records.read_json(result)["profile"])
        own = profiles.profile(profile)
        same = (own.data or profile) == (run.profile.data or run.profile.name)
        other = open_run(profile, str(folder), str(run.data) if same else "")
        return other if (other.data / "store").is_dir() and (folder / "01_train_teacher" / "result.json").is_file() else None
    except (ConfigError, DataError, KeyError):
        return None
