"""A name, a file or a run folder in, the trained detector it means out: for looking at scans and for exporting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from kdlib import records, zoo
from kdlib.config import DecodeConfig, ModelConfig, RefinedConfig, TwoStageConfig
from kdlib.errors import ConfigError
from kdlib.lab import profiles
from kdlib.lab.folders import WEIGHTS
from kdlib.lab.pipeline import located
from kdlib.models.build import build
from kdlib.models.detector import AnchorDetector, CenterPoint
from kdlib.models.weights import load_weights, read_card
from kdlib.training.job import TrainJob

TEACHER, STUDENTS = "01_train_teacher", "02_distill_student"


@dataclass(frozen=True)
class Trained:
    """A detector's configuration and its weights on disk."""

    model: ModelConfig
    weights: Path
    what: str  # for people: which model of which run

    @property
    def trained_on(self) -> str:
        """What the weights' card says about the data, empty if nothing."""
        return str(read_card(self.weights).get("data", ""))

    def detector(self, score: float | None = None, overlap: float | None = None) -> CenterPoint | AnchorDetector:
        """Return the network ready to detect.

        Args:
            score: Lowers the threshold below which it drops boxes, where given.
            overlap: Replaces the overlap in the BEV above which the worse of two boxes goes.

        Raises:
            DataError: If the weights cannot be read or are another model's.
        """
        model = self.model
        if isinstance(model, TwoStageConfig):  # its first stage's boxes are nobody's answer
            refined = _loosened(model.second.refined, score, overlap)
            model = replace(model, second=replace(model.second, refined=refined))
        else:
            model = replace(model, head=replace(model.head, decode=_loosened(model.head.decode, score, overlap)))
        network = build(model).eval()
        load_weights(self.weights, network)
        return network


_Decode = TypeVar("_Decode", DecodeConfig, RefinedConfig)


def _loosened(decode: _Decode, score: float | None, overlap: float | None) -> _Decode:
    threshold = decode.score_threshold if score is None else min(score, decode.score_threshold)
    return replace(decode, score_threshold=threshold, nms_iou=decode.nms_iou if overlap is None else overlap)


def find(source: str, weights: Path | None = None, arm: str | None = None) -> Trained:
    """Return what a name or path means.

    Args:
        source: A model of the zoo (with ``weights``, or with the ones shipped), a ``.safetensors`` file whose card names its
            model, the folder of one training, or the folder of a whole run.
        weights: A safetensors file that replaces the source's own.
        arm: Of a whole run: ``teacher``, ``alone``, ``init`` or ``full``; by default the student with most of the recipe.

    Raises:
        ConfigError: If there is no such thing, or it does not say which model it is; the message says what can be given.
    """
    path = Path(source)
    if source in zoo.MODELS:
        found = _of_zoo(source, weights)
    elif (path / "job.json").is_file():
        found = Trained(TrainJob.read(path).model, path / "weights.safetensors", f"the training in {path}")
    elif any((path / stage / "result.json").is_file() for stage in (TEACHER, STUDENTS)):
        return _replaced(_of_run(path, arm), weights)
    elif path.is_file():
        found = _of_file(path)
    else:
        raise ConfigError(
            f"'{source}' is neither a folder of a run or training, a .safetensors file, nor a model: {', '.join(zoo.MODELS)}"
        )
    if arm is not None:
        raise ConfigError(f"an arm ('{arm}') can be chosen from a whole run only, '{source}' is one model")
    return _replaced(found, weights)


def _replaced(found: Trained, weights: Path | None) -> Trained:
    found = found if weights is None else replace(found, weights=weights, what=f"{found.model.name} with {weights}")
    if not found.weights.is_file():
        raise ConfigError(f"the weights {found.weights} of {found.what} do not exist; train first, or name others with --weights")
    return found


def _of_zoo(name: str, weights: Path | None) -> Trained:
    shipped = WEIGHTS / f"{name}.safetensors"
    if weights is None and not shipped.is_file():
        there = ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.safetensors"))) or "none"
        raise ConfigError(f"no weights are shipped for {name} (there are: {there}); name a file with --weights")
    return Trained(zoo.model(name), weights or shipped, f"the shipped {name}")


def _of_file(path: Path) -> Trained:
    name = str(read_card(path).get("model", ""))
    if name not in zoo.MODELS:
        raise ConfigError(f"{path} does not say which model of the zoo it is; give --model NAME --weights {path}")
    return Trained(zoo.model(name), path, f"{name} in {path}")


def _of_run(folder: Path, arm: str | None) -> Trained:
    students = folder / STUDENTS / "result.json"
    values = records.read_json(students if students.is_file() else folder / TEACHER / "result.json")
    profile = profiles.profile(values["profile"])
    rows = {row["arm"]: row for row in reversed(values.get("students", []))}  # an arm's first seed
    trained = [name for name in profiles.ARMS if name in rows]
    chosen = arm or (trained[-1] if trained else "teacher")
    if chosen == "teacher":
        weights = records.read_json(folder / TEACHER / "result.json")["weights"]
        file = _inside(folder, weights, "teacher/scratch/weights.safetensors")
        return Trained(profile.teacher_model, file, f"the teacher of {folder}")
    if chosen not in rows:
        raise ConfigError(f"{folder} has no arm '{chosen}', it has: {', '.join(('teacher', *trained))}")
    title = f"{profiles.ARMS[chosen]}, seed {rows[chosen]['seed']}, of {folder}"
    return Trained(profile.student_model, _inside(folder, rows[chosen]["weights"]), title)


def _inside(folder: Path, text: str, *copies: str) -> Path:
    """Return the file a run's result names; where it is gone, its copy in the folder: moved with the run, or trained there."""
    named = located(text)
    places = (named, folder.joinpath(*named.parts[-3:]), *(folder / copy for copy in copies))
    return next((path for path in places if path.is_file()), named)
