"""What a base cannot have, told by its family's class and its configs: nothing is loaded."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers

from sdlora import choices
from sdlora.config.params import Base
from sdlora.config.sample import Hires, Sample
from sdlora.config.train import Pivotal, TextEncoder, Train
from sdlora.errors import DataError, MissingError, SdloraError
from sdlora.flow.foreseen import Question
from sdlora.models.family import ModelFamily
from sdlora.models.loading import check_class, scheduler_file
from sdlora.models.objective import objective_of
from sdlora.stages.sample.drawing import check_before_training, check_drawing


def why_not(question: Question) -> str | None:
    """The sentence with which a job would refuse; nothing where it would not, or where it takes files to know.

    None where nobody can tell, and nothing is to be remembered: a base's files are damaged, which the job says.
    """
    family: type[ModelFamily] = choices.pick(choices.FAMILIES, question.family)
    drawing = _drawing(question.drawing)
    try:
        if question.training is not None:
            _check_training(question, family)
        check_drawing(drawing, family)
        if Path(question.model).is_dir():  # of the hub nothing is fetched before a job does
            base = Base(model=question.model, family=question.family, size_px=question.size_px, captioner="-")
            with _readable():
                check_before_training(drawing, base, question.drawn_px)
    except SdloraError as error:
        return str(error)
    except Exception:  # of a library, about one base: the answers about others stand
        return None
    return ""


@contextmanager
def _readable() -> Iterator[None]:
    """What is said of files that the question does not have is no answer to it: they may be mended."""
    try:
        yield
    except (DataError, MissingError) as error:
        raise OSError(str(error)) from None


def _check_training(question: Question, family: type[ModelFamily]) -> None:
    settings = Train().model_copy(
        update={
            **(question.training or {}),
            "text_encoder": TextEncoder() if question.learns_text else None,
            "pivotal": Pivotal() if question.learns_trigger else None,
        }
    )
    denoiser = _class_of((question.index or {}).get(family.denoiser_name))
    check_class(family, settings, question.family, denoiser)
    kind = _class_of((question.index or {}).get("scheduler"))
    if kind is not None and question.scheduler is not None:
        config, place = kind.from_config(question.scheduler).config, scheduler_file(question.model)
        objective_of(family.objectives, config, place, settings)


def _class_of(entry: Any) -> Any:
    """The class of diffusers that a pipeline's index names; None where it names none."""
    return getattr(diffusers, str(entry[-1]), None) if isinstance(entry, list) and entry else None


def _drawing(asked: dict[str, Any]) -> Sample:
    hires = asked.get("hires")
    return Sample().model_copy(update={**asked, "hires": None if hires is None else Hires.model_validate(hires)})


def main() -> None:
    """A list of questions on stdin; on stdout, last, the list of their answers."""
    print(json.dumps([why_not(Question.model_validate(asked)) for asked in json.load(sys.stdin)]))
