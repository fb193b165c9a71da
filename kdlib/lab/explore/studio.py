"""What notebook 04 shows of a finished run: two models on a frame from above and in space, maps,
the next frame worth a look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL.Image import Image

from kdlib.data.augment import boxes_in_range
from kdlib.data.collate import collate
from kdlib.errors import ConfigError, DataError
from kdlib.lab import profile_files, scoring
from kdlib.lab.explore import maps
from kdlib.lab.explore.choice import BASES, JUMPS, LAYERS, MAP_NAMES, Choice
from kdlib.lab.explore.outcomes import judge_layers
from kdlib.lab.explore.ranking import Counted, count_outcomes
from kdlib.lab.explore.scenes import (
    ARM_TITLES,
    extent,
    of_class,
    predicted,
    scene,
    true_boxes,
)
from kdlib.lab.folders import data_folder
from kdlib.lab.pipeline import Run, chosen_teacher, student_name, trained_students
from kdlib.types import Batch, Int64
from kdlib.viz.bev import contact_sheet, draw_bev
from kdlib.viz.interactive import scene_figure
from kdlib.viz.layers import GroundMap, Panel

_TEACHER = "teacher"


class Studio:
    """The frames and models of one run, loaded when they are first shown; only the last frame's
    answers are kept.
    """

    def __init__(self, run: Run, threshold: float = 0.5) -> None:
        """Open a run that notebooks 00 to 02 have finished; ConfigError if one of them has not."""
        self.run, self.threshold, self.frame_count = run, threshold, run.frame_count
        self.class_names = run.profile.student_model.class_names
        # what people call each model, and its arm
        self.models, self._arms = {_TEACHER: _TEACHER}, {_TEACHER: _TEACHER}
        self._trained = {_TEACHER: chosen_teacher(run)}
        for (arm, seed), trained in trained_students(run).items():
            name = student_name(arm, seed)
            self.models[name] = f"{ARM_TITLES.get(arm, arm)}, seed {seed}"
            self._arms[name], self._trained[name] = arm, trained
        self._frame = lru_cache(1)(partial(scene, run))
        self._batch = lru_cache(1)(self._read_batch)
        self._answer = lru_cache(3)(
            lambda frame, model: maps.ask(self._network(model), self._batch(frame))
        )
        self._network = lru_cache(None)(lambda model: maps.load_network(self._trained[model]))
        self.table = lru_cache(None)(
            lambda model: scoring.predict_weights(run, model, self._trained[model])
        )
        self._truths = lru_cache(1)(partial(true_boxes, run))
        self._counted = lru_cache(16)(
            lambda model, *cut: count_outcomes(self.table(model), self._truths(), *cut)
        )

    def start(self, frame: int = -1) -> Choice:
        """Return the teacher beside the distilled student, on the frame where distillation helped
        most (-1) or a given one.
        """
        choice = Choice(max(frame, 0), _TEACHER, self._first("full"), self.threshold)
        if frame >= 0:
            return choice
        order = next((o for o in ("helped", "ahead") if len(self._order(o, choice))), "hardest")
        best = self._order(order, choice)
        return replace(choice, frame=int(best[0])) if len(best) else choice

    def name(self, choice: Choice) -> str:
        """Return the frame's name."""
        return f"frame {choice.frame}: {self._frame(choice.frame).frame_id}"

    def panels(self, choice: Choice) -> tuple[Panel, Panel]:
        """Return both halves, judged and cut as chosen, with their maps; BrowserError or
        ConfigError if one is not there.
        """
        choice.check(tuple(self.models), self.frame_count)
        return self._panel(choice, choice.left, "left"), self._panel(choice, choice.right, "right")

    def draw(self, choice: Choice, path: str | Path | None = None) -> Figure:
        """Return both models from above."""
        limits = "Waymo's" if choice.iou is None else f"{choice.iou:g}"
        note = (
            f"score ≥ {choice.min_score:.2f}, 3D IoU ≥ {limits}, "
            f"{choice.class_name or 'all classes'}"
        )
        region, points = extent(self.run.profile.student_model), self._frame(choice.frame).points
        return draw_bev(
            points,
            self.panels(choice),
            extent=region,
            title=self._title(choice),
            note=note,
            path=path,
        )

    def scene(self, choice: Choice) -> Any:
        """Return both models in space, as a plotly figure; maps lie on the ground of the picture
        from above only.
        """
        panels = self.panels(replace(choice, map="none"))
        return scene_figure(self._frame(choice.frame).points, panels, title=self._title(choice))

    def sheet(self, choice: Choice, path: str | Path) -> Image:
        """Return a choice once for each map of its recipe: the static twin of switching them."""
        names = [
            name
            for name in MAP_NAMES[1:]
            if self.run.profile.kd.logit or name != "pivotal positions"
        ]
        return contact_sheet([self.draw(replace(choice, map=name)) for name in names], path)

    def gallery(self, choice: Choice, folder: Path) -> dict[str, str]:
        """Draw the first frame of every order as ``<order>.png``, and return what stands below it:
        the buttons' static twin.
        """
        captions = {}
        for order in JUMPS:
            if len(self._order(order, choice)):
                frame, sentence = self.jump(order, replace(choice, frame=-1))
                first = replace(choice, frame=frame)
                self.draw(first, folder / f"{order}.png")
                captions[order] = f"{self.name(first)}: {sentence}"
        return captions

    def jump(self, order: str, choice: Choice, onward: bool = False) -> tuple[int, str]:
        """Return the first frame in an order of JUMPS, or the one after this (``onward``; after the
        last comes the first), and a sentence about it. Frames are judged as they are drawn: at the
        chosen score, overlap and class.

        ConfigError if the run has no frame of that kind.
        """
        frames = self._order(order, choice).tolist()
        if not frames:
            words = f"no frame '{JUMPS[order]}' for {self.models[self._learner(choice)]}"
            raise ConfigError(f"{words} at a score of {choice.min_score:.2f}")
        place = (frames.index(choice.frame) + 1) % len(frames) if onward else 0
        frame = int(frames[place])
        if order == "hardest":
            sentence = f"{int(self._count(choice.right, choice).missed[frame])} objects missed"
        else:
            base, learner = self._base(order), self._learner(choice)
            first, second = self._count(base, choice), self._count(learner, choice)
            gained = (second.found - first.found)[frame]
            wrong = (second.false_alarms - first.false_alarms)[frame]
            sentence = f"{gained:+d} found, {wrong:+d} false alarms against {self.models[base]}"
        return frame, f"{JUMPS[order]}, {place + 1} of {len(frames)}: {sentence}"

    def reading(self, choice: Choice) -> str:
        """Say what the teacher and one student of each arm find on a frame, as it is drawn."""
        firsts = {arm: self._first(arm) for arm in dict.fromkeys(self._arms.values())}
        counts = {arm: self._count(name, choice) for arm, name in firsts.items()}
        objects = len(self._truths()[choice.frame][1])
        told = [
            f"{ARM_TITLES.get(arm, arm)} {own.found[choice.frame]} with "
            f"{own.false_alarms[choice.frame]} false alarms"
            for arm, own in counts.items()
        ]
        return (
            f"Of {objects} objects, at a score of {choice.min_score:.2f} and Waymo's overlap, are "
            f"found: {', '.join(told)}."
        )

    def _count(self, model: str, choice: Choice) -> Counted:
        return self._counted(model, choice.min_score, choice.iou, choice.class_name)

    def _order(self, order: str, choice: Choice) -> Int64:
        """Return the frames of an order, the furthest first."""
        if order not in JUMPS:
            raise ConfigError(f"unknown order '{order}'; there are: {', '.join(JUMPS)}")
        if order == "hardest":
            amount = self._count(choice.right, choice).missed.astype(float)
        else:
            names = (self._base(order), self._learner(choice))
            first, second = (self._count(name, choice).merit for name in names)
            amount = first - second if order == "hurt" else second - first
        return np.argsort(-amount, kind="stable")[: int((amount > 0).sum())]

    def _base(self, order: str) -> str:
        return self._first(BASES[order])

    def _learner(self, choice: Choice) -> str:
        return choice.right if choice.right != _TEACHER else self._first("full")

    def _first(self, arm: str) -> str:
        """Return the first seed of an arm; the last student where the run has not trained that
        arm.
        """
        return next((name for name, own in self._arms.items() if own == arm), list(self.models)[-1])

    def _title(self, choice: Choice) -> str:
        return self.run.profile.titled(self._frame(choice.frame).frame_id)

    def _panel(self, choice: Choice, model: str, side: str) -> Panel:
        frame, arm = self._frame(choice.frame), self._arms[model]
        boxes = predicted(
            self.table(model), frame.frame_id, choice.min_score, arm, self.class_names
        )
        boxes = replace(boxes, name=f"{ARM_TITLES.get(arm, arm)}: found")
        truth, boxes = (of_class(part, choice.class_name) for part in (frame.layers[0], boxes))
        judged = judge_layers(truth, boxes, choice.iou)
        layers = tuple(layer for name, layer in zip(LAYERS, judged) if name in choice.layers)
        ground = None if choice.map == "none" else self._ground(choice, model, side)
        return Panel(self.models[model], layers, str(judged), ground)

    def _ground(self, choice: Choice, model: str, side: str) -> GroundMap:
        if choice.map == "heatmap":
            return maps.heat_map(self._answer(choice.frame, model), choice.class_name)
        if choice.map == "BEV features":
            return maps.feature_map(self._answer(choice.frame, model))
        learner = self._learner(choice)
        teacher, student = self._answer(choice.frame, _TEACHER), self._answer(choice.frame, learner)
        lesson = maps.Lesson(teacher, student, self._batch(choice.frame), self.run.profile.kd)
        if choice.map == "pivotal positions":
            return lesson.pivotal_positions()
        return lesson.pull_mask() if side == "right" and lesson.kd.logit else lesson.label_mask()

    def _read_batch(self, frame: int) -> Batch:
        """Return a frame with the boxes a training would see."""
        model = self.run.profile.student_model
        sample = self.run.frames(model)[frame]
        inside = boxes_in_range(sample.boxes, model.grid.point_range)
        return collate([replace(sample, boxes=sample.boxes[inside], labels=sample.labels[inside])])


# runs to choose from by name, each opened when it is called
Studios = Mapping[str, Callable[[], Studio]]


def studios(run: Run, threshold: float = 0.5) -> Studios:
    """Return the run, then its finished neighbours in the same folder, by name, each opened when it
    is called.
    """
    opened = {run.folder.name: partial(Studio, run, threshold)}
    for result in sorted(run.folder.parent.glob("*/02_distill_student/result.json")):
        folder = result.parents[1]
        # a damaged result, or of a profile that is unknown here
        with suppress(ConfigError, DataError, KeyError):
            profile = profile_files.of_run(folder)
            told = (folder / profile_files.FILE).is_file() or profile.name != run.profile.name
            other = Run(profile, folder, data_folder(profile.folder) if told else run.data)
            if (other.data / "store").is_dir() and (
                folder / "01_train_teacher" / "result.json"
            ).is_file():
                opened.setdefault(folder.name, partial(Studio, other, threshold))
    return opened
