"""What is said of a model that cannot be read: which option names it, and what to do."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from helpers import ROOT, TINY
from PIL import Image
from safetensors import SafetensorError

from sdlora.config.animate import Animate
from sdlora.config.caption import Caption
from sdlora.config.sample import Sample
from sdlora.errors import DataError, MissingError
from sdlora.flow.foreseen import Question
from sdlora.models import load_model, loading
from sdlora.models.architectures import outline
from sdlora.models.forbidden import why_not
from sdlora.models.sd import StableDiffusion
from sdlora.stages.animate.animate import load
from sdlora.stages.caption.blip import Blip

NOWHERE = "somebody/nothing"
BASE = TINY.model_copy(update={"model": NOWHERE, "revision": "v2"})
OTHER_VAE = TINY.model_copy(update={"vae": NOWHERE, "vae_revision": "v2"})


def describe(captioner: str) -> str:
    return Blip(captioner, "v2", Caption(), 1).captions([Image.new("RGB", (64, 64))])[0]


@pytest.mark.parametrize(
    ("option", "work"),
    [
        ("bases.<name>.model", lambda: load_model(BASE, "cpu")),
        ("bases.<name>.vae", lambda: load_model(OTHER_VAE, "cpu")),
        ("bases.<name>.vae", lambda: outline(StableDiffusion, OTHER_VAE)),
        ("bases.<name>.captioner", lambda: describe(NOWHERE)),
        ("animate.model", lambda: load(Animate(model=NOWHERE, revision="v2", dtype="fp32"))),
    ],
    ids=["base", "vae", "its shape", "captioner", "film"],
)
def test_what_is_not_to_be_had_is_named_with_its_option(option: str, work: Callable[[], object]) -> None:
    said = re.escape(f"{option}: '{NOWHERE}' is neither on this machine nor to be had from the hub at v2.")
    way = re.escape(f"`hf download {NOWHERE} --revision v2`, or set {option} to a folder")
    with pytest.raises(MissingError, match=f"^{said}.*{way}"):
        work()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: unknown")])
def test_a_card_that_is_full_or_lost_is_no_damaged_file(error: RuntimeError) -> None:
    class Kind:
        @staticmethod
        def from_pretrained(*_: object, **__: object) -> None:
            raise error

        from_single_file = from_pretrained

    with pytest.raises(RuntimeError, match=r"^CUDA"):
        loading.from_pretrained(Kind, "bases.<name>.model", "models/tiny-sd", None, dtype=torch.float32)
    with pytest.raises(RuntimeError, match=r"^CUDA"):
        loading.from_file(Kind, "mine.safetensors", {})


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: unknown")])
def test_a_card_that_is_full_while_fp16_files_are_read_is_no_base_without_safetensors(error: RuntimeError) -> None:
    class Kind:
        @staticmethod
        def from_pretrained(*_: object, variant: str | None = None, **__: object) -> None:
            raise OSError("no file named model.safetensors") if variant is None else error

    for dtype in (torch.float32, torch.float16):
        with pytest.raises(RuntimeError, match=r"^CUDA"):
            loading.from_pretrained(Kind, "bases.<name>.model", "models/tiny-sd", None, dtype=dtype)


def test_a_damaged_fp16_file_is_named_with_its_option() -> None:
    class Kind:
        @staticmethod
        def from_pretrained(*_: object, **__: object) -> None:
            raise SafetensorError("cut short")

    with pytest.raises(DataError, match=rf"^bases\.<name>\.model: '{ROOT}/models/tiny-sd' cannot be read: cut short"):
        loading.from_pretrained(Kind, "bases.<name>.model", str(ROOT / "models/tiny-sd"), None, dtype=torch.float16)


def cut_short(base: Path) -> None:
    file = base / "vae/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "weights": cut_short,
    "index": lambda base: (base / "model_index.json").unlink(),
    "scheduler": lambda base: (base / "scheduler/scheduler_config.json").write_text("{", encoding="utf-8"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder_that_is_no_whole_base_is_named(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(ROOT / "models/tiny-sd", folder)
    DAMAGE[damage](folder)
    base = TINY.model_copy(update={"model": str(folder)})
    with pytest.raises(DataError, match=rf"^bases\.<name>\.model: '{folder}' cannot be read: "):
        load_model(base, "cpu", ("vae",))
    foreseen = why_not(Question.of(base, 64, Sample(clip_skip=1), None))
    assert foreseen == ("" if damage == "weights" else None), "an answer is remembered, and the folder may be mended"


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_base_that_has_weights_in_fp16_alone_is_read(
    dtype: Literal["fp32", "bf16", "fp16"], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `hf download --include "*.fp16.safetensors"` leaves it; a CPU, or a training in bf16, wants another type."""
    shutil.copytree(ROOT / "models/tiny-sd", tmp_path / "base")
    file = tmp_path / "base/vae/diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    base = TINY.model_copy(update={"model": str(tmp_path / "base"), "dtype": dtype})
    assert load_model(base, "cpu", ("vae",)).pipeline.vae is not None
    assert f"note: {base.model} has weights in fp16 alone, which are read as " in capsys.readouterr().out


def test_a_file_without_its_familys_configs_is_named(tmp_path: Path) -> None:
    """diffusers fetches them from the hub, of which there is none here."""
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"x": zeros(1)}, tmp_path / "mine.safetensors")
    base = TINY.model_copy(update={"model": str(tmp_path / "mine.safetensors")})
    with pytest.raises(
        DataError, match=r"^bases\.<name>\.model: '.*mine\.safetensors' cannot be read: .*save_pretrained"
    ):
        load_model(base, "cpu")


def test_a_captioner_without_its_config_is_named(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models/tiny-blip", tmp_path / "blip")
    (tmp_path / "blip/config.json").unlink()
    with pytest.raises(DataError, match=r"^bases\.<name>\.captioner: '.*blip' cannot be read: "):
        describe(str(tmp_path / "blip"))
