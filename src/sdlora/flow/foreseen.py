"""What a job would refuse, said before the first one: by its settings, its base's small JSON files, and this machine.

What a family or its objective does not have only its code knows, which imports torch. So one process answers for all
jobs that are to run, and its answers are remembered by what they depend on: a plan reads JSON.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from sdlora import choices, gpu, records, weights
from sdlora.config.params import Base
from sdlora.config.sample import Sample
from sdlora.config.train import Train
from sdlora.errors import ParamsError
from sdlora.flow.code import CODE_MEMORY, PACKAGE, Code
from sdlora.flow.hashing import PRIVATE, read_regular, sha256_text
from sdlora.flow.makers import package_version
from sdlora.flow.recipe import Recipe
from sdlora.stages.animate.recipe import AnimateRecipe
from sdlora.stages.caption.recipe import CaptionRecipe
from sdlora.stages.encode.recipe import EncodeRecipe
from sdlora.stages.evaluate import weights as networks
from sdlora.stages.evaluate.recipe import MeasuringRecipe
from sdlora.stages.probe.recipe import ProbeRecipe
from sdlora.stages.sample.recipe import DrawingRecipe
from sdlora.stages.train.recipe import TrainRecipe

MEMORY = PRIVATE / "foreseen.json"
KEPT = 1000  # answers, the newest
#: Settings of which a family or its objective may have none; a question has these alone.
OF_TRAINING = ("weighting", "loss", "huber_schedule", "timestep_sampling", "timestep_shift", "compile")
OF_DRAWING = ("scheduler", "clip_skip", "decode")
FORBIDDEN = PACKAGE / "models/forbidden.py"
_ASK = "from sdlora.models.forbidden import main; main()"


class Question(BaseModel):
    """Whether a base can have some settings: all that the answer depends on, but code."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str
    model: str
    size_px: int  # of the base
    drawn_px: int
    index: dict[str, Any] | None  # model_index.json; None where it is not here
    scheduler: dict[str, Any] | None  # scheduler_config.json, likewise
    encoders: dict[str, Any]  # configs of text encoders, where layers are skipped
    drawing: dict[str, Any]
    training: dict[str, Any] | None  # None where nothing is trained
    learns_text: bool = False
    learns_trigger: bool = False

    @classmethod
    def of(cls, base: Base, drawn_px: int, sample: Sample, train: Train | None) -> "Question":
        """What must be asked of a base."""
        folder = _folder_of(base)
        drawing = sample.model_dump(mode="json", include={*OF_DRAWING})
        if sample.decode == "tiled" and sample.hires is not None:
            drawing["hires"] = sample.hires.model_dump(mode="json")
        for option in ("second_prompt", "second_negative_prompt"):
            drawing[option] = None if getattr(sample, option) is None else "-"
        return cls(
            family=base.family, model=base.model, size_px=base.size_px,
            drawn_px=drawn_px if sample.decode == "tiled" else 0, drawing=drawing,
            encoders={} if sample.clip_skip is None else _encoders(folder),
            index=records.read_config(folder / "model_index.json"),
            scheduler=records.read_config(folder / "scheduler/scheduler_config.json"),
            training=None if train is None else train.model_dump(mode="json", include={*OF_TRAINING}),
            learns_text=train is not None and train.text_encoder is not None,
            learns_trigger=train is not None and train.pivotal is not None,
        )  # fmt: skip

    @property
    def text(self) -> str:
        """As JSON."""
        return records.compact_json(self.model_dump(mode="json"))


def _folder_of(base: Base) -> Path:
    """Where a base's configs lie: its folder, or the hub's cache, of which nothing is fetched."""
    path = Path(base.model)
    if path.exists():
        return path
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    cached = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{base.model.replace('/', '--')}"
    branch = cached / "refs" / (base.revision or "main")
    return cached / "snapshots" / (branch.read_text("utf-8").strip() if branch.is_file() else base.revision or "main")


def _encoders(folder: Path) -> dict[str, Any]:
    return {path.parent.name: records.read_config(path) for path in sorted(folder.glob("text_encoder*/config.json"))}


class Foresight:
    """Answers for the jobs that are to run."""

    def __init__(self, jobs: Iterable[Recipe], here: bool) -> None:
        """Nothing is asked yet.

        Args:
            jobs: That are not fresh.
            here: Whether they run on this machine: of another one's card nothing is known.
        """
        self._jobs, self._here = [*jobs], here
        self._known: dict[str, str] | None = None
        self._code_of: dict[str, str] = {}

    def check(self, job: Recipe) -> None:
        """Refuse a job that cannot do its work.

        Raises:
            SdloraError: Its own sentence, which it would have said after all jobs before it.
        """
        for option, model in _models_of(job):
            weights.refuse_incomplete(option, model)
            weights.refuse_others(model)
        if self._here:
            check_machine(job)
            for setting, network in job.networks.items() if isinstance(job, MeasuringRecipe) else ():
                networks.check(setting, network)
        question = _question_of(job)
        if question is not None and (reason := self._answers()[self._key(question)]):
            raise ParamsError(reason)

    def _answers(self) -> Mapping[str, str]:
        """By a question's key, why not, or nothing; asked once for all."""
        if self._known is not None:
            return self._known
        questions = {self._key(one): one for one in map(_question_of, self._jobs) if one is not None}
        found = read_regular(MEMORY)
        known: dict[str, str] = found if isinstance(found, dict) else {}
        if new := {key: one for key, one in questions.items() if not isinstance(known.get(key), str)}:
            answers = dict(zip(new, _ask([*new.values()]), strict=True))
            known = {**known, **{key: answer for key, answer in answers.items() if answer is not None}}
            records.write_json(MEMORY, dict([*known.items()][-KEPT:]))
        self._known = {key: known.get(key, "") for key in questions}
        return self._known

    def _key(self, question: Question) -> str:
        if question.family not in self._code_of:
            entries = (choices.FAMILIES[question.family], *choices.WEIGHTINGS.values())
            self._code_of[question.family] = Code(CODE_MEMORY).reach(FORBIDDEN, entries).identity
        return sha256_text(f"{question.text} {self._code_of[question.family]} {package_version('diffusers')}")


def _ask(questions: Sequence[Question]) -> list[str | None]:
    """Why not, by one process that imports torch; None where it cannot tell, of which stderr has a line."""
    asked = json.dumps([question.model_dump(mode="json") for question in questions])
    done = subprocess.run([sys.executable, "-c", _ASK], input=asked, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"the process that was asked ended with {done.returncode}"])[-1]
        print(f"note: what the bases cannot do is said by each job: {why[:300]}", file=sys.stderr)
        return [None] * len(questions)
    answers: list[str | None] = json.loads(done.stdout.splitlines()[-1])
    for model in {question.model: None for question, answer in zip(questions, answers, strict=True) if answer is None}:
        print(f"note: what {model} cannot do is said by each job", file=sys.stderr)
    return answers


def _question_of(job: Recipe) -> Question | None:
    """What a job that trains or draws asks of its base."""
    if isinstance(job, TrainRecipe):
        return Question.of(job.base, job.size_px, job.sample or Sample(), job.train)
    if isinstance(job, ProbeRecipe):
        return Question.of(job.base, job.size_px, job.sample, job.training.train)
    return Question.of(job.base, job.size_px, job.sample, None) if isinstance(job, DrawingRecipe) else None


def _models_of(job: Recipe) -> Iterator[tuple[str, str]]:
    """Hub ids and folders of the networks that a job loads, and the option that names each."""
    if isinstance(job, TrainRecipe | EncodeRecipe | DrawingRecipe):
        yield weights.BASE, job.base.model
        if job.base.vae is not None:
            yield weights.VAE, job.base.vae
    if isinstance(job, CaptionRecipe) and job.caption.by != "none":
        yield weights.CAPTIONER, job.captioner
    if isinstance(job, AnimateRecipe):
        yield weights.FILM, job.animate.model


def check_machine(job: Recipe) -> None:
    """Refuse what this machine's card, or that it has none, does not allow.

    Raises:
        MissingError: If the job needs a GPU, or another one.
        ParamsError: If no GPU can do it.
    """
    train = job.training if isinstance(job, ProbeRecipe) else job
    if isinstance(train, TrainRecipe) and gpu.concerns(train.train, train.base):
        gpu.check(train.train, train.base, gpu.found())
    if isinstance(job, AnimateRecipe) and (job.animate.dtype == "fp16" or gpu.is_likely()):
        gpu.check_film(job.animate.dtype, gpu.found())
    if job.cards and gpu.is_likely():
        for dtype, instead in _types_of(job):
            gpu.check_dtype(dtype, instead, gpu.found())


def _types_of(job: Recipe) -> Iterator[tuple[str, str]]:
    """The types in which a job computes, each with what else could be set; a training's own are `gpu.check`'s."""
    made_by = job.training if isinstance(job, ProbeRecipe) else job
    encode = made_by.encode if isinstance(made_by, EncodeRecipe | TrainRecipe) else None
    if encode is not None:
        yield encode.dtype, "encode.dtype: fp16 or fp32"
    if isinstance(job, DrawingRecipe):
        yield job.base.dtype, "bases.<name>.dtype: fp16, in which is drawn, too"
    yield "fp32", ""
