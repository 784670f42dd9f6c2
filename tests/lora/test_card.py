"""The model card: its code draws what was trained, and captions of strangers stay texts."""

import ast
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from helpers import TINY
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from training import ABOUT, context_of, drawn_with, predicted, settings, small_base, trained

from sdlora.config.params import Export
from sdlora.config.train import Pivotal, TextEncoder, Train
from sdlora.lora import pivotal
from sdlora.lora.card import card, one_line
from sdlora.lora.metadata import About
from sdlora.lora.names import EMBEDDINGS, FILE_NAME

HOSTILE = (
    'captain"); __import__("os").system("touch pwned"); ("',
    "captain'''\n```\n\n# Owned\n\n```python\nimport os",
    "captain, <script>alert(1)</script> <img src=x onerror=alert(1)>",
    "captain\n---\nlicense: evil\nbase_model: evil/evil\n---\n",
    "captain, [click](http://127.0.0.1/x) ![x](http://127.0.0.1/y) http://127.0.0.1/z <http://127.0.0.1/q>",
    "captain | a | b\n| --- | --- |",
    'captain \\" \\n {{ 7 * 7 }} ${HOME} `id` $(id)',
    "captain\u2028import os\u2029\x1b[31m\x85\u202e*bold* **x** _y_ ~~z~~",
    "- [x] captain: {a: 1} &lt;b&gt; #hash @user",
)


def code_of(text: str) -> str:
    """The card's only Python block."""
    (block,) = [token.content for token in MarkdownIt().parse(text) if token.info == "python"]
    return block


def about(*captions: str, trigger: str = "captain") -> About:
    return About(trigger, 25, captions, (64, 64), "epsilon", 192, 1)


def body(text: str) -> str:
    return text.split("\n---\n", 1)[1]


@pytest.mark.parametrize("caption", HOSTILE, ids=range(len(HOSTILE)))
def test_a_strangers_caption_is_neither_code_nor_markup(tmp_path: Path, caption: str) -> None:
    text = card("v1", settings(), TINY, None, about(caption), {})
    plain = body(card("v1", settings(), TINY, None, about("captain, left"), {}))
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert data["widget"] == [{"text": one_line(caption)}] and data["instance_prompt"] == "captain"
    assert data.keys() == {"library_name", "pipeline_tag", "instance_prompt", "tags", "widget"}
    # the code is the same but for one literal, which is the caption
    told, expected = (ast.parse(code_of(each)) for each in (body(text), plain))
    literals = [node.value for node in ast.walk(told) if isinstance(node, ast.Constant)]
    assert one_line(caption) in literals
    for tree in (told, expected):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in (one_line(caption), "captain, left"):
                node.value = "-"
    assert ast.dump(told) == ast.dump(expected)
    # the page has the same elements, and shows the caption
    shown, other = (_rendered(each) for each in (body(text), plain))
    assert re.sub(r">[^<]*<", "><", shown) == re.sub(r">[^<]*<", "><", other)
    assert f'such as "{one_line(caption)}".' in unescape(re.sub(r"<[^>]*>", "", shown))


def _rendered(text: str) -> str:
    return MarkdownIt("gfm-like", {"linkify": False}).render(re.sub(r"```python.*?\n```", "", text, flags=re.DOTALL))


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(small_base().model, safety_checker=None)


def test_the_cards_base_is_the_one_that_was_trained_on() -> None:
    base = TINY.model_copy(
        update={"model": "somebody/sd", "revision": "451f", "vae": "other/vae", "vae_revision": "31f2"}
    )
    code = code_of(body(card("v1", settings(), base, "somebody/sd", ABOUT, {})))
    assert "vae = AutoencoderKL.from_pretrained('other/vae', revision='31f2')" in code
    assert "from_pretrained('somebody/sd', revision='451f', vae=vae)" in code
    assert "from diffusers import AutoencoderKL, StableDiffusionPipeline" in code
    local = base.model_copy(update={"vae": str(TINY.model)})
    code = code_of(body(card("v1", settings(), local, "somebody/sd", ABOUT, {})))
    assert "vae" not in code and "from_pretrained('somebody/sd', revision='451f')" in code, "nobody else has it"


CASES: list[dict[str, Any]] = [
    {},
    {"lora_type": "dora"},
    {"lora_type": "loha", "targets": "all"},
    {"lora_type": "lokr", "text_encoder": TextEncoder(rank=2, alpha=1.0, learning_rate=1e-2)},
    {"pivotal": Pivotal(vectors=3, learning_rate=1e-1)},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", CASES, ids=str)
def test_the_cards_code_draws_what_was_trained(
    tmp_path: Path, pipeline: StableDiffusionPipeline, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path / "checkpoints/step-000003", **options)
    caption = "captain, left"
    text = card("v1", run.settings, small_base(), small_base().model, about(caption), {})
    *lines, last = code_of(body(text)).strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)  # the card's own code, up to the picture
    drawing = names["pipeline"]
    found = drawn_with(pipeline, tmp_path / "checkpoints/step-000003" / FILE_NAME, 1.0)
    assert torch.allclose(predicted(drawing.unet), found, atol=1e-5)
    said = "<captain>, left" if run.settings.pivotal else caption
    assert last == f"image = pipeline({said!r}).images[0]"
    with torch.no_grad():
        expected = run.conditioning_of([caption])["context"]
    assert torch.allclose(context_of(drawing, said), expected, atol=1e-4)


def test_a_learnt_trigger_is_said_by_its_token() -> None:
    text = card("v1", settings(pivotal=Pivotal()), TINY, None, about("pixel art, a hat", trigger="pixel art"), {})
    assert "instance_prompt: <pixel-art>" in text and "- text: <pixel-art>, a hat" in text
    assert "Begin a prompt with **&lt;pixel-art&gt;**" in text
    assert f"| `{EMBEDDINGS}` | diffusers" in text and "| `embeddings/pixel-art.safetensors` |" in text
    assert "`embedding:pixel-art`" in text
    assert pivotal.token_of("pixel art") == "<pixel-art>"
    assert EMBEDDINGS not in card("v1", settings(), TINY, None, ABOUT, {})


@pytest.mark.parametrize(
    ("options", "export", "present", "absent"),
    [
        ({}, Export(), ["v1-step…-comfyui-a1111.safetensors` | A1111"], ["lycoris", "-diffusers", "ema/"]),
        ({"lora_type": "loha"}, Export(), ["-comfyui-a1111.safetensors", "trainer with LyCORIS"], ["-lycoris."]),
        ({"lora_type": "dora"}, Export(), ["-lycoris.safetensors", "the last checkpoint's"], []),
        ({"lora_type": "dora"}, Export(dora_whole="none"), ["-lycoris.safetensors"], ["comfyui-a1111"]),
        ({"ema": {"decay": 0.9}}, Export(dtype="fp16"),
         ["-comfyui-a1111-fp16.safetensors", "-diffusers-fp16.safetensors", "`ema/`"], []),
    ],
)  # fmt: skip
def test_the_card_says_which_file_is_for_whom(
    options: dict[str, Any], export: Export, present: list[str], absent: list[str]
) -> None:
    train = Train.model_validate(settings().model_dump() | options)
    text = card("v1", train, TINY, None, ABOUT, {}, export)
    whom = "diffusers with peft" if train.lora_type == "loha" else "diffusers alone"
    assert f"| `{FILE_NAME}` | {whom}" in text
    assert "takes the last checkpoint" in text and "`v1.safetensors` is its LoRA" in text
    assert all(word in text for word in present) and not any(word in text for word in absent)
