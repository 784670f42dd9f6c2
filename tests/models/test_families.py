"""What single families say that the conformance suite cannot ask of all."""

from pathlib import Path

import pytest
import torch
from helpers import TINY
from shapes import save_small_sd3
from toy_family import ClipSkip

from sdlora.config.params import Base
from sdlora.config.sample import Sample
from sdlora.errors import DataError, MissingError
from sdlora.models import load_model
from sdlora.stages.sample.sample import Painter, Prompt
from sdlora.stages.train.captions import check_lengths

CAPTION = "captain, black coat"


@pytest.mark.usefixtures("clip_skip_on_the_menu")
def test_clip_skip_is_diffusers_own() -> None:
    model = load_model(TINY.model_copy(update={"family": "clip-skip"}), "cpu")
    assert isinstance(model, ClipSkip)
    encoder = model.pipeline.text_encoder
    encoder.__dict__["text_model"] = encoder  # where diffusers 0.42 looks for its last norm: transformers 5 moved it
    with torch.no_grad():
        theirs = model.pipeline.encode_prompt([CAPTION], "cpu", 1, False, clip_skip=1)[0]
        plain = model.pipeline.encode_prompt([CAPTION], "cpu", 1, False)[0]
    assert torch.equal(model.encode_prompts([CAPTION])["context"], theirs)
    assert not torch.allclose(theirs, plain)


@pytest.mark.slow
@pytest.mark.usefixtures("clip_skip_on_the_menu")
def test_clip_skip_draws_otherwise_than_sd() -> None:
    drawn = []
    for family in ("sd", "clip-skip"):
        painter = Painter(TINY.model_copy(update={"family": family}), Sample(inference_steps=2), 64)
        painter.use(None)
        drawn.append(painter.draw([Prompt("r", CAPTION, 1)])[0].tobytes())
    assert drawn[0] != drawn[1]


def test_sd3_reads_as_much_as_its_longest_encoder(small_sd3: Base, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model(small_sd3, "cpu")
    assert model.token_limits() == {"text_encoder": 75, "text_encoder_2": 75, "text_encoder_3": 255}
    word, letter = " ".join(["smile"] * 90), "a" * 300
    assert set(check_lengths(model, [CAPTION, word, letter])) == {word, letter}
    said = capsys.readouterr().out
    assert "longer than 75 tokens, and what comes after is not seen by text_encoder;" in said
    assert "longer than 255 tokens, and what comes after is not seen by text_encoder_3;" in said
    with pytest.raises(DataError, match="tokens, but text_encoder reads 75"):
        check_lengths(model, [CAPTION], word)


def test_sd3_without_t5_is_told_zeros_as_by_diffusers(tmp_path: Path) -> None:
    model = load_model(save_small_sd3(tmp_path, t5=False), "cpu")
    ours = model.encode_prompts([CAPTION])
    with torch.no_grad():
        context, _, pooled, _ = model.pipeline.encode_prompt(
            [CAPTION], None, None, do_classifier_free_guidance=False, device="cpu"
        )
    assert list(model.text_encoders()) == ["text_encoder", "text_encoder_2"]
    assert torch.equal(ours["context"], context) and torch.equal(ours["pooled"], pooled)
    assert not ours["context"][:, 77:].any()


def test_an_sd3_that_is_not_there_is_told_how_to_get() -> None:
    base = Base(model="stabilityai/stable-diffusion-3-medium-diffusers", family="sd3", size_px=1024, captioner="-")
    with pytest.raises(MissingError, match=r"hf download stabilityai/stable-diffusion-3-medium-diffusers"):
        load_model(base, "cpu")
