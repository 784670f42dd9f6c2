"""What a run publishes for A1111, ComfyUI and kohya's tools: names, headers, types, cards."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY
from peft import LoHaConfig
from safetensors.torch import load_file
from torch import nn
from training import ABOUT, Place, header_of, settings

from sdlora import records
from sdlora.config.params import Base, Export
from sdlora.config.train import Train
from sdlora.errors import DataError
from sdlora.lora import tool_files
from sdlora.lora.diffusers_file import read_lora, write_file
from sdlora.lora.metadata import About, header
from sdlora.lora.names import FILE_NAME
from sdlora.lora.whole import wants_whole, whole_updates
from sdlora.stages.export import export


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_sd: Base) -> Place:
    return Place(tmp_path / "here", monkeypatch, small_sd)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_names_say_for_whom_a_file_is(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    load, loaded = export.load_model, []
    monkeypatch.setattr(export, "load_model", lambda *words: (loaded.append(words[1:]), load(*words))[1])
    result = place.train(lora_type="dora", ema={"decay": 0.9}, pivotal={"vectors": 2})
    assert loaded == [("cpu", ("denoiser",))], "whole layers are made of the denoiser's weights"
    trained = {FILE_NAME, "embeddings.safetensors"}
    assert files_of(result / "checkpoints/step-000002") == trained | {f"ema/{name}" for name in trained}
    folder, shared = result / "export", {"embeddings/captain.safetensors"}
    first = shared | {"a-step000002-lycoris.safetensors"}
    last = shared | {"a-step000004-lycoris.safetensors", "a-step000004-comfyui-a1111.safetensors"}
    last |= {"a-step000004-comfyui-a1111.json"}
    average = {f"ema/{name.replace('step000004', 'step000004-ema')}" for name in last}
    assert {name for name in files_of(folder / "step-000002") if not name.startswith("ema/")} == first
    assert files_of(folder / "step-000004") == last | average
    embedding = load_file(folder / "step-000004/embeddings/captain.safetensors")
    assert embedding.keys() == {"clip_l"} and embedding["clip_l"].shape == (2, 32)
    assert json.loads((folder / "step-000004/a-step000004-comfyui-a1111.json").read_text("utf-8")) == {
        "description": "trained on 3 pictures", "sd version": "SD1", "activation text": "captain",
        "preferred weight": 0, "negative text": "", "notes": "",
    }  # fmt: skip
    for ending, module, arguments in (
        ("comfyui-a1111", "lycoris.kohya", {"algo": "full"}),
        ("lycoris", "lycoris.kohya", {"algo": "lora", "dora_wd": "True", "wd_on_output": "True"}),
    ):
        said = header_of(folder / f"step-000004/a-step000004-{ending}.safetensors")
        assert (said["ss_network_module"], json.loads(said["ss_network_args"])) == (module, arguments)
        assert said["ss_output_name"] == "a-step000004", "A1111's alias"


def test_another_type_of_files_is_no_training(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    result = place.train()
    lora = (result / "checkpoints/step-000004" / FILE_NAME).read_bytes()
    whole = load_file(result / "export/step-000004/a-step000004-comfyui-a1111.safetensors")
    capsys.readouterr()
    folder = place.train(export={"dtype": "fp16"}) / "export/step-000004"
    assert "were trained before" in capsys.readouterr().out
    file = result / "checkpoints/step-000004" / FILE_NAME
    assert file.read_bytes() == lora
    half = load_file(folder / "a-step000004-comfyui-a1111-fp16.safetensors")
    assert half.keys() == whole.keys()
    for name, value in half.items():
        assert value.dtype == (torch.float32 if name.endswith(".alpha") else torch.float16)
        assert torch.equal(value, whole[name].to(value.dtype))
    found, said = read_lora(folder / "a-step000004-diffusers-fp16.safetensors")
    assert said == read_lora(file)[1] and {value.dtype for value in found.values()} == {torch.float16}
    assert not (folder / "a-step000004-comfyui-a1111.safetensors").exists()


def test_a_type_that_cannot_hold_the_numbers_is_refused(tmp_path: Path) -> None:
    found = {"unet.a.lora_A.weight": torch.full((1, 2), 1e6), "unet.a.lora_B.weight": torch.ones(2, 1)}
    said = {"lora_adapter_metadata": json.dumps({"unet.r": 1, "unet.lora_alpha": 1})}
    write_file(tmp_path / FILE_NAME, found, said)
    trained = tool_files.Trained(tmp_path / FILE_NAME, "a", 1, settings(), TINY, ABOUT)
    with pytest.raises(DataError, match=r"export.dtype is fp16, which cannot hold 1e\+06 of lora_unet_a"):
        tool_files.write_for_tools(trained, Export(dtype="fp16"))
    assert tool_files.write_for_tools(trained, Export(dtype="bf16"))


def test_doras_whole_update_by_hand() -> None:
    """W + B A = [[6, 8], [6, 8]], rows of length 10; magnitudes 5 and 20 make [[3, 4], [12, 16]] of it."""
    unet = nn.ModuleDict({"m": nn.Linear(2, 2, bias=False)})
    unet["m"].weight = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    found = {
        "unet.m.lora_A.weight": torch.tensor([[3.0, 4.0]]),
        "unet.m.lora_B.weight": torch.tensor([[0.5], [1.0]]),
        "unet.m.lora_magnitude_vector": torch.tensor([5.0, 20.0]),
        "text_encoder.text_model.n.lora_A.weight": torch.ones(1, 2),
    }
    updates = whole_updates(found, {"unet.r": 1, "unet.lora_alpha": 2.0}, unet)
    assert updates.keys() == {"m"}
    assert torch.allclose(updates["m"], torch.tensor([[0.0, 0.0], [12.0, 16.0]]), atol=1e-6)
    assert [wants_whole("last", (2, 4), step) for step in (2, 4)] == [False, True]
    assert wants_whole("every", (2, 4), 2) and not wants_whole("none", (2, 4), 4)


def test_the_header_counts_as_kohya_does(place: Place) -> None:
    said = header_of(next((place.train() / "export/step-000004").glob("a-*.safetensors")))
    assert json.loads(said["ss_tag_frequency"]) == {"1_captain": {"captain": 3, "left": 3}}
    assert json.loads(said["ss_dataset_dirs"]) == {"1_captain": {"n_repeats": 1, "img_count": 3}}
    assert json.loads(said["ss_bucket_info"]) == {"buckets": {"0": {"resolution": [16, 16], "count": 3}}}
    expected = {
        "ss_num_train_images": "3", "ss_clip_skip": "1", "ss_learning_rate": "0.001", "ss_unet_lr": "0.001",
        "ss_text_encoder_lr": "None", "ss_network_dim": "2", "ss_network_alpha": "1.0", "ss_network_dropout": "0.0",
        "ss_network_module": "networks.lora",
    }  # fmt: skip
    assert {key: said[key] for key in expected} == expected and "ss_network_args" not in said


HEADERS = [
    ({"targets": "all"}, {"a.lora_down.weight": (4, 8, 3, 3), "a.lora_up.weight": (8, 4, 1, 1)},
     "networks.lora", {"conv_dim": "4", "conv_alpha": "2.0"}),
    ({"loraplus_ratio": 4.0}, {"a.lora_down.weight": (4, 8), "a.lora_up.weight": (8, 4)},
     "networks.lora", {"loraplus_unet_lr_ratio": "4.0"}),
    ({"lora_type": "dora"}, {"a.lora_down.weight": (4, 8), "a.lora_up.weight": (8, 4), "a.dora_scale": (8, 1)},
     "lycoris.kohya", {"algo": "lora", "dora_wd": "True", "wd_on_output": "True"}),
    ({"lora_type": "loha", "dropout": 0.1}, {"a.hada_w1_a": (8, 4), "a.hada_w1_b": (4, 8)},
     "lycoris.kohya", {"algo": "loha", "rank_dropout": "0.1"}),
    ({"lora_type": "lokr"}, {"a.lokr_w1": (2, 2), "a.lokr_w2": (4, 4)}, "lycoris.kohya", {"algo": "lokr"}),
]  # fmt: skip


@pytest.mark.parametrize(("options", "shapes", "module", "arguments"), HEADERS, ids=[str(row[0]) for row in HEADERS])
def test_module_and_arguments_are_those_of_the_network(
    options: dict[str, object], shapes: dict[str, tuple[int, ...]], module: str, arguments: dict[str, str]
) -> None:
    found = {f"lora_unet_{name}": torch.ones(shape) for name, shape in shapes.items()}
    found["lora_unet_a.alpha"] = torch.tensor(2.0)
    train = Train.model_validate(settings(rank=4, alpha=2.0).model_dump() | options)
    said = header("v", 4, train, TINY, ABOUT, found)
    assert (said["ss_network_module"], json.loads(said.get("ss_network_args", "{}"))) == (module, arguments)
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("4", "2.0")


def test_rates_are_those_that_were_trained_with() -> None:
    base = Base(**{**TINY.model_dump(), "learning_rate_scale": 6.0})
    text = settings(text_encoder={"rank": 2, "learning_rate": 5e-5}, learning_rate=1e-4)
    said = header("v", 4, text, base, ABOUT, {})
    assert [float(said[key]) for key in ("ss_unet_lr", "ss_text_encoder_lr")] == pytest.approx([6e-4, 3e-4])
    stages = ({"until_step": 2, "learning_rate": 3e-4}, {"until_step": 4, "learning_rate": 2e-5})
    options = {"lr_schedule": "staged", "lr_stages": stages, "steps": 4}
    staged = settings(text_encoder={"rank": 2, "learning_rate": 5e-5}, learning_rate=1e-4, **options)
    said = header("v", 4, staged, base, ABOUT, {})  # the text encoder's keeps its ratio to learning_rate
    assert [float(said[key]) for key in ("ss_unet_lr", "ss_text_encoder_lr")] == pytest.approx([18e-4, 9e-4])
    prodigy = settings(optimizer="prodigy", learning_rate=1.0)
    assert header("v", 4, prodigy, base, ABOUT, {})["ss_learning_rate"] == "1.0", "Prodigy finds its own rate"
    sdxl = base.model_copy(update={"family": "sdxl"})
    assert header("v", 4, text, sdxl, ABOUT, {})["ss_clip_skip"] == "2", "the last but one layer"


def test_tags_are_counted_by_caption_and_pictures_by_repeats() -> None:
    row = {"1_hat": {"n_repeats": 1, "img_count": 2}, "3_hat": {"n_repeats": 3, "img_count": 4}}
    about = About("hat", 6, (), (64, 64), "epsilon", 192, 1, {}, row, ((64, 64, 10), (48, 80, 4)))
    said = header("v", 4, settings(), TINY, about, {})
    assert said["ss_num_train_images"] == "14"
    buckets = json.loads(said["ss_bucket_info"])["buckets"]
    assert buckets == {"0": {"resolution": [64, 64], "count": 10}, "1": {"resolution": [48, 80], "count": 4}}


def test_a_loha_of_another_scale_is_written_at_scale_one() -> None:
    """LyCORIS' merging applies alpha / rank twice: at 1 it makes no difference."""
    from peft import inject_adapter_in_model
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(0)
    config = LoHaConfig(r=3, alpha=2, target_modules=["m"], init_weights=False)
    block = inject_adapter_in_model(config, nn.ModuleDict({"m": nn.Linear(12, 8)}))
    named = {f"unet.{name}": value for name, value in get_peft_model_state_dict(block).items()}
    found = tool_files.to_kohya(named, {"unet.r": 3, "unet.alpha": 2}, "sd", 2)
    parts = {name.removeprefix("lora_unet_m."): value.double().numpy() for name, value in found.items()}
    assert parts["alpha"] == 3
    whole = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    assert np.allclose(whole, block["m"].get_delta_weight("default").detach().numpy(), atol=1e-7)


def test_the_readers_of_records_know_the_newer_fields() -> None:
    """A run that was kept before the fields were there is still published."""
    older = {"trigger": "a", "pictures": 2, "captions": ["a"], "size_px": [64, 64], "prediction_type": "epsilon",
             "cross_attention_dim": 192, "layers_per_block": 1}  # fmt: skip
    about = About(**json.loads(records.canonical_json(older)))
    assert about.draws == 2 and header("v", 4, settings(), TINY, about, {})["ss_tag_frequency"] == "{}"
