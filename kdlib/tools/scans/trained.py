"""Finds trained weights by a model's name, a file or a run's folder, and loads their detector: for
scans and for exporting.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from kdlib import records, zoo
from kdlib.config import DecodeConfig, RefinedConfig, TwoStageConfig
from kdlib.errors import ConfigError
from kdlib.lab import profile_files
from kdlib.lab.folders import WEIGHTS, located
from kdlib.lab.profile import ARMS
from kdlib.lab.trained import TrainedWeights
from kdlib.models.build import build
from kdlib.models.detector import AnchorDetector, CenterPoint
from kdlib.models.weights import load_weights, read_card
from kdlib.training.job import TrainJob

TEACHER, STUDENTS = "01_train_teacher", "02_distill_student"

_Decode = TypeVar("_Decode", DecodeConfig, RefinedConfig)


def trained_on(trained: TrainedWeights) -> str:
    """Return what the weights' card says about the data, empty if nothing."""
    return str(read_card(trained.weights).get("data", ""))


def load_detector(
    trained: TrainedWeights, score: float | None = None, overlap: float | None = None
) -> CenterPoint | AnchorDetector:
    """Return the network ready to detect; ``score`` lowers its threshold, ``overlap`` replaces that
    of its suppression (BEV).

    Raises:
        DataError: If the weights cannot be read or are another model's.
    """

    def loosened(decode: _Decode) -> _Decode:
        threshold = decode.score_threshold if score is None else min(score, decode.score_threshold)
        return replace(
            decode,
            score_threshold=threshold,
            nms_iou=decode.nms_iou if overlap is None else overlap,
        )

    model = trained.model
    if isinstance(model, TwoStageConfig):  # its first stage's boxes are nobody's answer
        model = replace(model, second=replace(model.second, refined=loosened(model.second.refined)))
    else:
        model = replace(model, head=replace(model.head, decode=loosened(model.head.decode)))
    network = build(model).eval()
    load_weights(trained.weights, network)
    return network


def find_weights(
    source: str, weights: Path | None = None, arm: str | None = None
) -> TrainedWeights:
    """Return what a name or path means.

    It is a model of the zoo (with ``weights``, or with the ones shipped), a ``.safetensors`` file
    whose card names its model, the folder of one training, or the folder of a whole run and an arm
    of it: ``teacher``, ``alone``, ``init``, ``full`` or ``own``, by default the student with most
    of the recipe. Weights, if given, replace the source's own.

    Raises:
        ConfigError: If there is no such thing, or it does not say which model it is; the message
            says what can be given.
    """
    path = Path(source)
    if source in zoo.MODELS:
        trained = _of_zoo(source, weights)
    elif (path / "job.json").is_file():
        trained = TrainedWeights(
            TrainJob.read(path).model, path / "weights.safetensors", f"the training in {path}"
        )
    elif any((path / stage / "result.json").is_file() for stage in (TEACHER, STUDENTS)):
        trained, arm = _of_run(path, arm), None
    elif path.is_file():
        name = str(read_card(path).get("model", ""))
        if name not in zoo.MODELS:
            raise ConfigError(
                f"{path} does not say which model of the zoo it is; give --model "
                f"NAME --weights {path}"
            )
        trained = TrainedWeights(zoo.model(name), path, f"{name} in {path}")
    else:
        raise ConfigError(
            f"'{source}' is neither a folder of a run or training, a .safetensors file, nor a "
            f"model: {', '.join(zoo.MODELS)}"
        )
    if arm is not None:
        raise ConfigError(
            f"an arm ('{arm}') can be chosen from a whole run only, '{source}' is one model"
        )
    if weights is not None:
        trained = replace(trained, weights=weights, origin=f"{trained.model.name} with {weights}")
    if not trained.weights.is_file():
        raise ConfigError(
            f"the weights {trained.weights} of {trained.origin} do not exist; train first, or "
            "name others with --weights"
        )
    return trained


def _of_zoo(name: str, weights: Path | None) -> TrainedWeights:
    shipped = WEIGHTS / f"{name}.safetensors"
    if weights is None and not shipped.is_file():
        there = ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.safetensors"))) or "none"
        raise ConfigError(
            f"no weights are shipped for {name} (there are: {there}); name a file with --weights"
        )
    return TrainedWeights(zoo.model(name), shipped, f"the shipped {name}")


def _of_run(folder: Path, arm: str | None) -> TrainedWeights:
    students = folder / STUDENTS / "result.json"
    values = records.read_json(students if students.is_file() else folder / TEACHER / "result.json")
    profile = profile_files.of_run(folder)
    rows = {row["arm"]: row for row in reversed(values.get("students", []))}  # an arm's first seed
    trained = [name for name in ARMS if name in rows]
    chosen = arm or (trained[-1] if trained else "teacher")
    if chosen == "teacher":
        weights = records.read_json(folder / TEACHER / "result.json")["weights"]
        file = _inside(folder, weights, "teacher/scratch/weights.safetensors")
        return TrainedWeights(profile.teacher_model, file, f"the teacher of {folder}")
    if chosen not in rows:
        raise ConfigError(
            f"{folder} has no arm '{chosen}', it has: {', '.join(('teacher', *trained))}"
        )
    title = f"{ARMS[chosen]}, seed {rows[chosen]['seed']}, of {folder}"
    return TrainedWeights(profile.student_model, _inside(folder, rows[chosen]["weights"]), title)


def _inside(folder: Path, text: str, *copies: str) -> Path:
    """Return the file a run's result names; where it is gone, its copy in the folder: moved with
    the run, or trained there.
    """
    named = located(folder, text)
    places = (named, *(folder / copy for copy in copies))
    return next((path for path in places if path.is_file()), named)
