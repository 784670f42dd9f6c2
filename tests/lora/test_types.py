"""LoRA types and optimizers: what is saved is what was trained, and each follows its definition."""

import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from operations import Operations
from peft.tuners.lora import LoraLayer
from torch import nn
from training import context_of, drawn_with, examples, predicted, run_of, settings, small_base, trained

from sdlora import choices
from sdlora.config.params import Flip
from sdlora.config.train import Ema, Pivotal, Prior, TextEncoder, Train
from sdlora.errors import ParamsError
from sdlora.lora import pivotal, types
from sdlora.lora.attach import attach_lora, detach_lora
from sdlora.lora.names import AVERAGE, EMBEDDINGS, FILE_NAME
from sdlora.stages.train import texts
from sdlora.stages.train.batch import draw_batch
from sdlora.stages.train.checkpoint import State
from sdlora.stages.train.loop import Run, backward, loss_of, optimizer_step, train_loop
from sdlora.stages.train.run import prepare, write_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    torch.set_num_threads(1)
    return StableDiffusionPipeline.from_pretrained(small_base().model, safety_checker=None)


CASES: list[dict[str, Any]] = [
    *({"lora_type": name} for name in choices.LORA_TYPES),
    *({"lora_type": name, "targets": "all"} for name in choices.LORA_TYPES),
    {"targets": "attention_feed_forward", "alpha": 1.0},
    {"rslora": True, "alpha": 2.0},
    *({"init": name, "alpha": 3.0} for name in ("kaiming", "pissa", "olora")),
    {"init": "pissa", "rslora": True, "alpha": 3.0},
    {"rank_pattern": {"attn2.to_k": 7}, "alpha_pattern": {"attn2.to_v": 9.0}, "alpha": 2.0},
    {"optimizer": "schedulefree_adamw"},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_the_file_draws_what_was_trained(tmp_path: Path, pipeline: StableDiffusionPipeline, options: Any) -> None:
    base = predicted(pipeline.unet)
    run = trained(tmp_path, **options)
    if options.get("optimizer") == "schedulefree_adamw":
        run.optimizer.optimizer.eval()  # its own way to the averaged point
    expected = predicted(run.model.denoiser)
    assert (expected - base).abs().max() > 1e-3
    found = drawn_with(pipeline, tmp_path / FILE_NAME, 1.0)
    assert (found - expected).abs().max() < 1e-3 * (expected - base).abs().max() + 2e-5
    assert torch.equal(predicted(pipeline.unet), base)


@pytest.mark.parametrize("name", ["lora", "loha", "lokr"])
def test_strength_zero_is_the_base(tmp_path: Path, pipeline: StableDiffusionPipeline, name: str) -> None:
    trained(tmp_path, lora_type=name)
    base = predicted(pipeline.unet)
    assert torch.allclose(drawn_with(pipeline, tmp_path / FILE_NAME, 0.0), base, atol=1e-5)
    assert not torch.allclose(drawn_with(pipeline, tmp_path / FILE_NAME, 1.0), base, atol=1e-4)


@pytest.mark.parametrize("init", ["gaussian", "kaiming", "pissa", "olora"])
def test_training_starts_at_the_base(pipeline: StableDiffusionPipeline, init: str) -> None:
    run = run_of(init=init)
    assert torch.allclose(predicted(run.model.denoiser), predicted(pipeline.unet), atol=1e-4)


def test_targets_grow() -> None:
    counts = {}
    for name in choices.TARGETS:
        unet = run_of(targets=name).model.denoiser
        counts[name] = sum(isinstance(module, LoraLayer) for module in unet.modules())
    # 6 transformers in the tiny UNet: 8 attention layers and 2 feed-forward layers each
    transformers = counts["attention"] // 8
    assert counts["attention_feed_forward"] == counts["attention"] + 2 * transformers
    assert counts["all"] > counts["attention_feed_forward"]
    inside = ("down_blocks", "mid_block", "up_blocks")
    layers = [
        name
        for name, module in StableDiffusionPipeline.from_pretrained(small_base().model).unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.startswith(inside)
    ]
    assert counts["all"] == len(layers)


def test_rank_and_alpha_patterns() -> None:
    unet = run_of(rank_pattern={"attn2.to_k": 7}, alpha_pattern={"attn2.to_v": 9.0}).model.denoiser
    for name, module in unet.named_modules():
        if isinstance(module, LoraLayer):
            assert module.r["default"] == (7 if name.endswith("attn2.to_k") else 4)
            expected = 9.0 / 4 if name.endswith("attn2.to_v") else 4 / module.r["default"]
            assert module.scaling["default"] == pytest.approx(expected)


@pytest.mark.parametrize("option", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("pattern", ["nonsense", "to_out", "proj_in", "o_k"])
def test_a_pattern_that_names_no_layer_is_told(option: str, pattern: str) -> None:
    said = f"train.{option}: '{pattern}' names none of the .* layers that carry a LoRA, .*; their names end in to_k"
    with pytest.raises(ParamsError, match=said):
        run_of(**{option: {"attn2.to_k": 4, pattern: 4}})


@pytest.mark.parametrize("option", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_those_above_it_leave_nothing_is_told(option: str) -> None:
    with pytest.raises(ParamsError, match=f"train.{option}: 'attn2.to_k' has no effect: .* put it first"):
        run_of(**{option: {"to_k": 4, "attn2.to_k": 7}})
    run_of(**{option: {"attn2.to_k": 7, "to_k": 4}})


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    layers = [m for m in run_of(rslora=True, alpha=6.0).model.denoiser.modules() if isinstance(m, LoraLayer)]
    assert {layer.scaling["default"] for layer in layers} == {6.0 / 4**0.5}


def test_max_norm_bounds_every_update(tmp_path: Path) -> None:
    def norms(run: Run) -> list[float]:
        return [
            float((m.get_delta_weight("default")).norm())
            for m in run.model.denoiser.modules()
            if isinstance(m, LoraLayer)
        ]

    free = norms(trained(tmp_path / "free", alpha=2.0))
    limit = sorted(free)[len(free) // 2]
    bound = norms(trained(tmp_path / "bound", alpha=2.0, max_norm=limit))
    assert max(bound) <= limit * 1.0001 < max(free)


def test_max_norm_is_layer_by_layers_to_the_last_bit_with_fewer_operations() -> None:
    """What one layer takes beside its products is taken of all at once."""
    layers = [m for m in run_of(targets="all", alpha_pattern={"to_k": 9.0}).model.denoiser.modules()
              if isinstance(m, LoraLayer)]  # fmt: skip
    network, generator = torch.nn.ModuleList(layers), torch.Generator().manual_seed(1)
    expected = []
    for layer in layers:
        down, up = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        up.copy_(torch.randn(up.shape, generator=generator))
        gram = (up.flatten(1).T @ up.flatten(1)) * (down.flatten(1) @ down.flatten(1).T)
        norm = gram.sum().clamp(min=0).sqrt() * layer.scaling["default"]
        ratio = (3.0 / norm.clamp(min=1e-12)).clamp(max=1.0).sqrt()
        expected += [down * ratio, up * ratio]
    with Operations() as counted:
        types.limit_norms(network, 3.0)
    found = [part["default"].weight for layer in layers for part in (layer.lora_A, layer.lora_B)]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert counted.seen.total() < 8 * len(layers)


def test_loraplus_moves_b_faster() -> None:
    groups = types.parameter_groups(run_of(loraplus_ratio=16.0).model, Train(loraplus_ratio=16.0), 1.0)
    assert [group["lr"] for group in groups] == [1e-4, 16e-4]
    assert all(p.shape[0] == 4 for p in groups[0]["params"])  # A: (rank, in)
    assert all(p.shape[1] == 4 for p in groups[1]["params"])  # B: (out, rank)


def test_dropout_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    for name in ("one", "two"):
        torch.manual_seed(len(name))
        trained(tmp_path / name, dropout=0.5)
        torch.randn(17 * len(name))
    trained(tmp_path / "none")
    files = [(tmp_path / name / FILE_NAME).read_bytes() for name in ("one", "two", "none")]
    assert files[0] == files[1] != files[2]


def test_ema_is_saved_beside_the_raw_weights(tmp_path: Path, pipeline: StableDiffusionPipeline) -> None:
    trained(tmp_path, ema=Ema(decay=0.5))
    drawn = [drawn_with(pipeline, place / FILE_NAME, 1.0) for place in (tmp_path, tmp_path / AVERAGE)]
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-4)


# One step from the same point with the same gradient, by each optimizer's definition.
def _one_step(name: str, **options: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(80, 64))
    before, gradient = parameter.detach().clone(), torch.randn(80, 64)
    settings = Train(optimizer=name, weight_decay=0.0, **options)
    optimizer = choices.pick(choices.OPTIMIZERS, name)([{"params": [parameter], "lr": 1e-2}], settings)
    parameter.grad = gradient.clone()
    optimizer.step()
    return before, gradient, parameter.detach()


def test_first_steps_follow_the_definitions() -> None:
    for name in ("adamw", "adamw8bit", "schedulefree_adamw", "lion"):
        before, gradient, after = _one_step(name)
        if name == "schedulefree_adamw":
            continue  # its point y is checked in test_the_file_draws_what_was_trained
        # Adam's first step is lr x sign for every entry, and Lion's always is
        assert torch.allclose(after, before - 1e-2 * gradient.sign(), atol=1e-4), name


def test_adafactor_divides_by_row_and_column_means() -> None:
    before, gradient, after = _one_step("adafactor")
    square = gradient.square() + 1e-30
    estimate = square.mean(1, keepdim=True) * square.mean(0, keepdim=True) / square.mean()
    update = gradient / estimate.sqrt()
    update /= max(1.0, float(update.square().mean().sqrt()))  # clipping threshold 1
    assert torch.allclose(after, before - 1e-2 * update, atol=1e-5)


def test_prodigy_raises_its_estimate() -> None:
    run = run_of(optimizer="prodigy", learning_rate=1.0, steps=12, checkpoint_every=12, d_coef=4.0)
    log = train_loop(run, None, lambda state: None)
    factors = [row[3] for row in log]
    assert factors[0] == pytest.approx(1e-6)
    assert factors[-1] > 1.05e-6


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"optimizer": "prodigy", "loraplus_ratio": 2.0}, "one learning rate"),
        ({"lora_type": "loha", "init": "pissa"}, "init does not apply"),
        ({"lora_type": "lokr", "rslora": True}, "rslora does not apply"),
        ({"lora_type": "dora", "init": "olora"}, "magnitudes"),
        ({"init": "pissa", "targets": "all"}, "convolutions"),
        ({"init": "pissa", "max_norm": 1.0}, "max_norm does not apply"),
        ({"huber_c": 0.2}, "no effect without loss: huber"),
        ({"snr_gamma": 5.0}, "no effect without weighting"),
        ({"noise_offset": 0.1}, "no effect without noise: offset"),
        ({"d0": 1e-5}, "no effect without optimizer: prodigy"),
        ({"noise": ("pyramid", "pyramid")}, "noise names 'pyramid' twice"),
        ({"noise": ("pyramyd",)}, "did you mean pyramid"),
        ({"optimizer": "schedulefree_adamw", "lr_schedule": "cosine"}, "would fight"),
        ({"optimizer": "schedulefree_adamw", "lr_schedule": "constant", "max_norm": 1.0}, "max_norm acts on the point"),
        ({"optimizer": "schedulefree_adamw", "lr_schedule": "constant", "ema": {}}, "ema acts on the point"),
    ],
    ids=str,
)
def test_options_that_cannot_apply_are_refused(options: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Train(**options)


@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_a_text_encoder_lora_is_trained_saved_and_drawn_with(
    tmp_path: Path, pipeline: StableDiffusionPipeline, kind: str
) -> None:
    run = trained(tmp_path, lora_type=kind, text_encoder=TextEncoder(rank=2, alpha=1.0, learning_rate=1e-2))
    rates = [group["lr"] for group in run.optimizer.param_groups]
    assert rates == [1e-2, 1e-2]
    with torch.no_grad():
        expected = run.conditioning_of(["captain, left"])["context"]
    before = context_of(pipeline, "captain, left")
    attach_lora(pipeline, tmp_path / FILE_NAME, 1.0)
    try:
        found = context_of(pipeline, "captain, left")
    finally:
        detach_lora(pipeline)
    assert (expected - before).abs().max() > 1e-2
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.equal(context_of(pipeline, "captain, left"), before)


def test_pivotal_tuning_learns_the_trigger_and_nothing_else(tmp_path: Path, pipeline: StableDiffusionPipeline) -> None:
    run = trained(tmp_path, pivotal=Pivotal(vectors=3, learning_rate=1e-1))
    with torch.no_grad():
        expected = run.conditioning_of(["captain, left", "toon head"])["context"]
    plain = {text: context_of(pipeline, text) for text in ("captain, left", "toon head")}
    trigger = pivotal.attach_embeddings(pipeline, tmp_path / EMBEDDINGS)
    try:
        assert trigger == "captain"
        spoken = pivotal.with_token("captain, left", trigger)
        assert spoken == "<captain>, left"
        assert torch.allclose(context_of(pipeline, spoken), expected[:1], atol=1e-4)
        assert (context_of(pipeline, spoken) - plain["captain, left"]).abs().max() > 1e-2
        assert torch.equal(context_of(pipeline, "toon head"), plain["toon head"])
    finally:
        pivotal.detach_embeddings(pipeline, trigger)
    assert not [word for word in pipeline.tokenizer.get_vocab() if word.startswith("<captain>")]
    pivotal.attach_embeddings(pipeline, tmp_path / EMBEDDINGS)  # as at the next checkpoint
    pivotal.detach_embeddings(pipeline, trigger)
    assert torch.equal(context_of(pipeline, "captain, left"), plain["captain, left"]), "nothing of it is left"


def test_a_text_encoder_lora_beside_learnt_embeddings_is_a_file_that_diffusers_reads(
    tmp_path: Path, pipeline: StableDiffusionPipeline
) -> None:
    """peft saves a resized embedding layer whole, and diffusers then reads nothing at all."""
    trained(tmp_path, pivotal=Pivotal(), text_encoder=TextEncoder(rank=2))
    pipeline.load_lora_weights(tmp_path, weight_name=FILE_NAME)
    try:
        assert any(hasattr(module, "lora_A") for module in pipeline.text_encoder.modules())
    finally:
        pipeline.unload_lora_weights()


def test_resume_with_everything_on_is_exact(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "text_encoder": TextEncoder(rank=2), "pivotal": Pivotal(), "ema": Ema(), "dropout": 0.1,
        "noise": ("pyramid", "offset"), "input_perturbation": 0.1, "loss": "huber", "weighting": "soft_min_snr",
        "loraplus_ratio": 4.0, "steps": 4, "checkpoint_every": 2,
    }  # fmt: skip
    states: list[State] = []

    def go(out: Path, start: State | None) -> None:
        run = run_of(**options)

        def on_checkpoint(state: State) -> None:
            write_checkpoint(run, out / f"step-{state.step}")
            states.append(copy.deepcopy(state))  # the optimizer goes on with its own tensors

        train_loop(run, start, on_checkpoint)

    go(tmp_path / "straight", None)
    go(tmp_path / "resumed", states[0])
    files = sorted((tmp_path / "straight/step-4").rglob("*.safetensors"))
    assert len(files) >= 4  # LoRA and embeddings, raw and averaged
    for file in files:
        assert file.read_bytes() == (tmp_path / "resumed" / file.relative_to(tmp_path / "straight")).read_bytes()


def test_a_trigger_inside_another_word_is_none() -> None:
    assert pivotal.with_token("a captain with a cap, capped", "cap") == "a captain with a <cap>, capped"
    assert pivotal.with_token("Cap, left", "cap") == "<cap>, left"


def test_prior_preservation_adds_the_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the store lies in the project
    monkeypatch.setattr("sdlora.stages.train.prior.INFERENCE_STEPS", 4)  # nobody looks at them
    run = run_of(prior=Prior(prompt="toon head", pictures=2, weight=0.5))
    assert run.prior is not None and len(run.prior.examples) == 2
    waiting = run.accelerator.init_handler
    assert waiting is not None and waiting.timeout >= timedelta(days=1), "the others wait while the first draws"
    torch.manual_seed(0)
    total = optimizer_step(run, 0)
    alone = run_of()
    expected = loss_of(alone, draw_batch(alone, 0, 0)) + 0.5 * loss_of(run.prior, draw_batch(run.prior, 0, 0))
    # the LoRA's first step has not changed the prior's loss by much
    assert float(total) == pytest.approx(float(expected), rel=0.2)
    kept = sorted((tmp_path / ".sdlora/store/prior").rglob("*.safetensors"))
    assert len(kept) == 2
    run_of(prior=Prior(prompt="toon head", pictures=2, weight=1.0))
    assert sorted((tmp_path / ".sdlora/store/prior").rglob("*.safetensors")) == kept, "of the same base they are reused"
    duller = small_base().model_copy(update={"guidance_scale_factor": 0.5})
    run_of(duller, prior=Prior(prompt="toon head", pictures=2, weight=1.0))
    assert len([*(tmp_path / ".sdlora/store/prior").rglob("*.safetensors")]) == 4, "drawn with the base's own guidance"
    monkeypatch.setattr(texts, "version", lambda package: "0.0")
    run_of(prior=Prior(prompt="toon head", pictures=2, weight=0.5))
    assert len([*(tmp_path / ".sdlora/store/prior").rglob("*.safetensors")]) == 6, "an update may draw other pictures"


def layers(run: Run) -> list[LoraLayer]:
    return [module for module in run.model.denoiser.modules() if isinstance(module, LoraLayer)]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_inputs_are_not_cast_forth_and_back_and_no_bit_changes(dtype: str) -> None:
    base = small_base().model_copy(update={"dtype": dtype})
    run = prepare(settings(mixed_precision="bf16"), Flip(), base, examples(), trigger="captain")
    source = torch.Generator().manual_seed(1)
    found, casts = [], []
    with torch.no_grad():
        for parameter in run.parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=source))
    backward(run, draw_batch(run, 0, 0))  # what a CPU keeps of the weights is made
    run.optimizer.zero_grad()
    for enabled in (False, True):
        assert any(layer.cast_input_dtype_enabled for layer in layers(run)) == enabled
        with Operations() as mode:
            loss = backward(run, draw_batch(run, 0, 0))
        found.append([loss, *(p.grad for p in run.parameters)])
        casts.append(mode.seen[str(torch.ops.aten._to_copy.default)])
        run.optimizer.zero_grad()
        for layer in layers(run):
            layer.cast_input_dtype_enabled = True
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert casts[0] < 0.6 * casts[1] if dtype == "bf16" else casts[0] <= casts[1]


@pytest.mark.parametrize("changes", [{"mixed_precision": "no"}, {"dropout": 0.1}, {"lora_type": "dora"}])
def test_what_computes_between_the_casts_keeps_them(changes: dict[str, object]) -> None:
    run = prepare(
        settings(**{"mixed_precision": "bf16", **changes}), Flip(), small_base(), examples(), trigger="captain"
    )
    assert all(layer.cast_input_dtype_enabled for layer in layers(run))
