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
from kdlib.lab.explore.choice import JUMPS, LAYERS, MAP_NAMES, Choice
from kdlib.lab.explore.outcomes import judge_layers
from kdlib.lab.explore.ranking import count_outcomes
from kdlib.lab.explore.scenes import ARM_TITLES, extent, predicted, scene
from kdlib.lab.pipeline import (
    Run,
    chosen_teacher,
    data_folder,
    student_name,
    trained_students,
)
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
        self._counted = lru_cache(None)(
            lambda model: count_outcomes(self.table(model), scoring.truth(run), run)
        )

    def start(self, frame: int = -1) -> Choice:
        """Return the teacher beside the distilled student, on the frame where distillation helped
        most (-1) or a given one.
        """
        choice = Choice(max(frame, 0), _TEACHER, self._first("full"), self.threshold)
        return (
            choice if frame >= 0 else replace(choice, frame=int(self._order("helped", choice)[0]))
        )

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

    def jump(self, order: str, choice: Choice) -> tuple[int, str]:
        """Return the frame after this one in an order of JUMPS, and a sentence about it; after the
        last comes the first.

        ``helped`` and ``hurt`` compare the first student trained alone with the one shown on the
        right, or the distilled one.

        ConfigError if the run has no frame of that kind.
        """
        frames = self._order(order, choice).tolist()
        if not frames:
            raise ConfigError(
                f"no frame where {JUMPS[order].removesuffix(' most')}: "
                f"{choice.right} is nowhere behind"
            )
        place = (frames.index(choice.frame) + 1) % len(frames) if choice.frame in frames else 0
        frame = int(frames[place])
        if order == "hardest":
            sentence = f"{int(self._counted(choice.right).missed[frame])} objects missed"
        else:
            base, learner = self._compared(choice)
            first, second = self._counted(base), self._counted(learner)
            gained, wrong = (
                (second.found - first.found)[frame],
                (second.false_alarms - first.false_alarms)[frame],
            )
            sentence = f"{gained:+d} found, {wrong:+d} false alarms against {self.models[base]},"
        return frame, f"{JUMPS[order]}, {place + 1} of {len(frames)}: {sentence} at a score of 0.3"

    def _order(self, order: str, choice: Choice) -> Int64:
        """Return the frames of an order, the furthest first; ``helped`` and ``hardest`` have one at
        least.
        """
        if order not in JUMPS:
            raise ConfigError(f"unknown order '{order}'; there are: {', '.join(JUMPS)}")
        if order == "hardest":
            amount = self._counted(choice.right).missed.astype(float)
        else:
            first, second = (self._counted(name).merit for name in self._compared(choice))
            amount = second - first if order == "helped" else first - second
        return np.argsort(-amount, kind="stable")[
            : max(int((amount > 0).sum()), int(order != "hurt"))
        ]

    def _compared(self, choice: Choice) -> tuple[str, str]:
        first = self._first("alone")
        return first, choice.right if choice.right not in (first, _TEACHER) else self._first("full")

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
        truth, boxes = frame.layers[0], replace(boxes, name=f"{ARM_TITLES.get(arm, arm)}: found")
        if choice.class_name is not None:
            label = self.class_names.index(choice.class_name) + 1
            truth, boxes = truth.part(truth.labels == label), boxes.part(boxes.labels == label)
        judged = judge_layers(truth, boxes, choice.iou)
        layers = tuple(layer for name, layer in zip(LAYERS, judged) if name in choice.layers)
        ground = None if choice.map == "none" else self._ground(choice, model, side)
        return Panel(self.models[model], layers, str(judged), ground)

    def _ground(self, choice: Choice, model: str, side: str) -> GroundMap:
        if choice.map == "heatmap":
            return maps.heat_map(self._answer(choice.frame, model), choice.class_name)
        if choice.map == "BEV features":
            return maps.feature_map(self._answer(choice.frame, model))
        learner = choice.right if choice.right != _TEACHER else self._first("full")
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
            other = Run(profile, folder, data_folder(profile) if told else run.data)
            if (other.data / "store").is_dir() and (
                folder / "01_train_teacher" / "result.json"
            ).is_file():
                opened.setdefault(folder.name, partial(Studio, other, threshold))
    return opened
