"""The training loop."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.optimization import get_cosine_with_hard_restarts_schedule_with_warmup
from torch import nn
from training import examples, settings, small_base

from sdlora import choices, records, tensors
from sdlora.config.params import Base, Flip
from sdlora.config.train import LrStage, Pivotal, TextEncoder, Train
from sdlora.errors import DataError, MissingError
from sdlora.flow import hashing
from sdlora.lora.names import FILE_NAME
from sdlora.models import load_model
from sdlora.stages.train import dataset, lr_schedules
from sdlora.stages.train.batch import draw_batch
from sdlora.stages.train.checkpoint import State, newest_state, save_state
from sdlora.stages.train.dataset import Example
from sdlora.stages.train.loop import loss_of, told_of_overflow, train_loop
from sdlora.stages.train.run import prepare, write_checkpoint


def trained(
    train: Train, run_folder: Path, start: State | None = None, stop_after: int | None = None
) -> list[list[float]]:
    """Train and save a state and a LoRA at each checkpoint, stopping early like a killed process."""
    torch.set_num_threads(1)
    run = prepare(train, Flip(), small_base(), examples(), trigger="captain")

    class Stopped(Exception):
        pass

    def on_checkpoint(state: State) -> None:
        write_checkpoint(run, run_folder / f"step-{state.step}")
        save_state(run_folder, state)
        if state.step == stop_after:
            raise Stopped

    try:
        return train_loop(run, start, on_checkpoint)
    except Stopped:
        return []


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", sorted(choices.OPTIMIZERS))
def test_resume_is_exact(tmp_path: Path, optimizer: str) -> None:
    schedule = "constant" if optimizer == "schedulefree_adamw" else "cosine"
    train = settings(optimizer=optimizer, batch_size=2, accumulation=2, lr_schedule=schedule)
    log = trained(train, tmp_path / "straight")
    trained(train, tmp_path / "stopped", stop_after=2)
    state = newest_state(tmp_path / "stopped")
    assert state is not None and state.step == 2
    assert trained(train, tmp_path / "stopped", state) == log
    straight, stopped = (tmp_path / name / "step-4" / FILE_NAME for name in ("straight", "stopped"))
    assert hashing.sha256_of(straight) == hashing.sha256_of(stopped)
    for file in ("tensors.safetensors", "state.json", "manifest.json"):
        states = [(tmp_path / name / "state/step-000004" / file).read_bytes() for name in ("straight", "stopped")]
        assert states[0] == states[1], file


def test_a_damaged_state_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(settings(), tmp_path)
    newest = tmp_path / "state/step-000004/tensors.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    state = newest_state(tmp_path)
    assert state is not None and state.step == 2
    assert "damaged state step-000004" in capsys.readouterr().out


CHANGES: list[dict[str, object]] = [
    {"rank": 3}, {"alpha": 1.0}, {"learning_rate": 2e-3}, {"optimizer": "adamw8bit"}, {"betas": (0.5, 0.999)},
    {"weight_decay": 5.0}, {"epsilon": 1e-2}, {"lr_schedule": "linear"},
    {"lr_schedule": "constant_with_warmup", "lr_warmup_steps": 3},
    {"lr_schedule": "cosine_with_restarts", "lr_cycles": 2}, {"batch_size": 2}, {"accumulation": 2},
    {"max_grad_norm": 1e-6}, {"latents": "mean"}, {"mixed_precision": "bf16"}, {"seed": 1}, {"steps": 5},
    {"lr_schedule": "staged", "lr_stages": (LrStage(until_step=4, learning_rate=5e-4),)},
    {"lora_type": "dora"}, {"rslora": True}, {"init": "kaiming"}, {"targets": "attention_feed_forward"},
    {"rank_pattern": {"attn1.to_q": 3}}, {"alpha_pattern": {"attn1.to_q": 5.0}}, {"dropout": 0.5}, {"max_norm": 1e-3},
    {"loraplus_ratio": 4.0}, {"text_encoder": TextEncoder(rank=2)}, {"pivotal": Pivotal(vectors=2)}, {"loss": "huber"},
    {"weighting": "debiased"}, {"noise": ("offset",)}, {"input_perturbation": 0.2}, {"caption_dropout": 0.9},
]  # fmt: skip
# Options that mean something beside another: that one, and the option.
BESIDE: dict[str, tuple[dict[str, object], object]] = {
    "huber_c": ({"loss": "huber"}, 0.5), "huber_schedule": ({"loss": "huber"}, "constant"),
    "snr_gamma": ({"weighting": "min_snr"}, 0.01), "noise_offset": ({"noise": ("offset",)}, 0.5),
    "pyramid_discount": ({"noise": ("pyramid",)}, 0.9), "pyramid_iterations": ({"noise": ("pyramid",)}, 1),
    "d_coef": ({"optimizer": "prodigy", "learning_rate": 1.0, "steps": 12, "checkpoint_every": 12}, 9.0),
    "d0": ({"optimizer": "prodigy", "learning_rate": 1.0}, 1e-3),
}  # fmt: skip
# Options whose effect other tests show: the LoRA's bytes alone would not, or must not differ.
ELSEWHERE = {
    "checkpoint_every": "test_params.py: test_checkpoint_steps_include_the_last",
    "ema": "test_types.py: test_ema_is_saved_beside_the_raw_weights",
    "prior": "test_types.py: test_prior_preservation_adds_the_class",
    "mask": "test_masks.py", "mask_floor": "test_masks.py",
    "shuffle_tags": "test_captions.py", "keep_tokens": "test_captions.py",
    "tag_dropout": "test_captions.py", "cache_latents": "test_caches.py", "cache_text": "test_caches.py",
    "seeds": "test_params.py: test_several_seeds_are_versions_of_their_own", "processes": "test_processes.py",
    "gradient_checkpointing": "test_gradient_checkpointing_changes_memory_not_the_gradient",
    "compile": "test_compiled.py",
    "timestep_sampling": "test_objective.py", "timestep_shift": "test_objective.py",
    "deterministic": "test_only_deterministic_algorithms_unless_a_gpu_may_choose",
}  # fmt: skip


def test_every_option_has_a_test_of_its_effect() -> None:
    shown = {name for change in CHANGES for name in change} | BESIDE.keys() | ELSEWHERE.keys()
    assert shown == set(Train.model_fields)


def lora_of(folder: Path, train: Train) -> bytes:
    trained(train, folder)
    return (folder / f"step-{train.steps}" / FILE_NAME).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_option_changes_the_lora(tmp_path: Path, plain_lora: bytes, change: dict[str, object]) -> None:
    assert lora_of(tmp_path, settings(**change)) != plain_lora


@pytest.mark.slow
@pytest.mark.parametrize("option", BESIDE)
def test_dependent_options_change_the_lora(tmp_path: Path, option: str) -> None:
    beside, value = BESIDE[option]
    without, with_it = (
        lora_of(tmp_path / name, settings(**beside, **more)) for name, more in (("a", {}), ("b", {option: value}))
    )
    assert without != with_it


@pytest.fixture(scope="module")
def plain_lora(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("plain")
    trained(settings(), folder)
    return (folder / "step-4" / FILE_NAME).read_bytes()


def test_the_same_run_gives_the_same_bytes(tmp_path: Path, plain_lora: bytes) -> None:
    trained(settings(), tmp_path)
    assert (tmp_path / "step-4" / FILE_NAME).read_bytes() == plain_lora


def test_gradient_checkpointing_changes_memory_not_the_gradient(tmp_path: Path, plain_lora: bytes) -> None:
    trained(settings(gradient_checkpointing=True), tmp_path)
    found = records_of(tmp_path / "step-4" / FILE_NAME)
    (tmp_path / "plain").write_bytes(plain_lora)
    for name, value in records_of(tmp_path / "plain").items():
        assert torch.allclose(found[name], value, atol=1e-4), name


def records_of(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.slow
def test_training_lowers_the_loss() -> None:
    train = settings(steps=40, checkpoint_every=40, rank=8, learning_rate=5e-3)
    run = prepare(train, Flip(probability=0), small_base(), examples(1))

    def unseen() -> float:
        with torch.no_grad():
            return sum(loss_of(run, draw_batch(run, step, 0)).item() for step in range(1000, 1020))

    before = unseen()
    train_loop(run, None, lambda state: None)
    assert unseen() < 0.95 * before


def test_batches_are_a_function_of_seed_and_step() -> None:
    run = prepare(settings(batch_size=2), Flip(), small_base(), examples())
    again, other = draw_batch(run, 7, 0), draw_batch(run, 8, 0)
    assert torch.equal(draw_batch(run, 7, 0).noise, again.noise)
    assert not torch.equal(again.noise, other.noise)
    # a batch of two sees what two batches of one see
    single = prepare(settings(batch_size=1, accumulation=2), Flip(), small_base(), examples())
    apart = [draw_batch(single, 7, part).latents for part in (0, 1)]
    assert torch.equal(torch.cat(apart), again.latents)


def test_every_epoch_sees_each_picture_once() -> None:
    seen = [dataset.chosen(42, draw, 5) for draw in range(15)]
    assert [sorted(seen[first : first + 5]) for first in (0, 5, 10)] == [list(range(5))] * 3
    assert seen[:5] != seen[5:10] or seen[5:10] != seen[10:]


def test_flips_come_as_often_as_asked() -> None:
    example = examples(1)[0]
    sides = [dataset.orientation(example, 0.5, 0, draw) for draw in range(2000)]
    assert 900 < sum(sides) < 1100
    assert sides == [dataset.orientation(example, 0.5, 0, draw) for draw in range(2000)]
    assert not any(dataset.orientation(example, 0.0, 0, draw) for draw in range(100))


def test_cosine_with_restarts_is_diffusers() -> None:
    train = Train(steps=100, lr_schedule="cosine_with_restarts", lr_cycles=3, lr_warmup_steps=10)
    pair = [torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0) for _ in range(2)]
    ours = lr_schedules.from_diffusers(pair[0], train)
    theirs = get_cosine_with_hard_restarts_schedule_with_warmup(pair[1], 10, 100, 3)
    for _ in range(100):
        assert ours.get_last_lr() == theirs.get_last_lr()
        for optimizer, schedule in zip(pair, (ours, theirs), strict=True):
            optimizer.step()
            schedule.step()


def test_staged_schedule_is_the_write_ups() -> None:
    stages = (
        LrStage(until_step=300, learning_rate=1e-4),
        LrStage(until_step=765, learning_rate=3e-5, schedule="cosine"),
    )
    rates = [lr_schedules.staged_rate(stages, step) for step in (0, 299, 300, 764, 765)]
    assert rates[:3] == [1e-4, 1e-4, 3e-5]
    assert 0 < rates[3] < 1e-8
    assert rates[4] == 0


def test_base_multiplies_the_learning_rate() -> None:
    base = small_base().model_copy(update={"learning_rate_scale": 3.0})
    run = prepare(settings(), Flip(), base, examples(1))
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(3e-3)


def test_diffusers_reads_the_file_at_the_right_strength(tmp_path: Path) -> None:
    train = settings(rank=4, alpha=1.0, learning_rate=1e-2)
    run = prepare(train, Flip(), small_base(), examples(1))
    train_loop(run, None, lambda state: None)
    write_checkpoint(run, tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(small_base().model)
    pipeline.load_lora_weights(tmp_path, weight_name=FILE_NAME)
    batch = draw_batch(run, 0, 0)
    context = batch.conditioning["context"]
    run.model.denoiser.eval()
    with torch.no_grad():
        ours = run.model.predict(batch.latents, batch.timesteps, {"context": context})
        theirs = pipeline.unet(batch.latents, batch.timesteps, context).sample
        pipeline.unload_lora_weights()
        without = pipeline.unet(batch.latents, batch.timesteps, context).sample
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, without, atol=1e-3)


def test_a_flipped_bit_in_the_cache_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors.write(path, {"mean": torch.ones(4, 4)})
    assert tensors.is_whole(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        tensors.read(path)


def test_only_deterministic_algorithms_unless_a_gpu_may_choose() -> None:
    torch.use_deterministic_algorithms(False)
    prepare(settings(), Flip(), small_base(), examples(1))
    assert torch.are_deterministic_algorithms_enabled()
    with pytest.raises(MissingError, match="deterministic: false needs a GPU"):
        prepare(settings(deterministic=False), Flip(), small_base(), examples(1))


def test_fp16_on_a_cpu_and_a_loss_that_is_no_number_are_told() -> None:
    with pytest.raises(MissingError, match="fp16 needs a GPU"):
        prepare(settings(mixed_precision="fp16"), Flip(), small_base(), examples(1))
    broken = Example("p0", (torch.full((4, 16, 16), torch.nan),), (torch.zeros(4, 16, 16),), ("captain",))
    run = prepare(settings(mixed_precision="no"), Flip(), small_base(), [broken])
    with pytest.raises(DataError, match="the loss is nan at step 1"):
        train_loop(run, None, lambda state: None)


def test_missing_base_says_what_to_do() -> None:
    base = Base(model="stabilityai/stable-diffusion-xl-base-1.0", family="sdxl", size_px=1024, captioner="-")
    with pytest.raises(MissingError, match=r"hf download stabilityai/stable-diffusion-xl-base-1.0"):
        load_model(base)
    with pytest.raises(MissingError, match=r"no file .mine\.safetensors"):
        load_model(base.model_copy(update={"model": "mine.safetensors"}))


def test_header_has_rank_alpha_and_no_time(tmp_path: Path) -> None:
    trained(settings(alpha=1.0), tmp_path)
    raw = (tmp_path / "step-4" / FILE_NAME).read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    metadata = json.loads(header["__metadata__"]["lora_adapter_metadata"])
    assert (metadata["unet.r"], metadata["unet.lora_alpha"]) == (2, 1.0)
    assert len(header["__metadata__"]) == 1
    assert records.canonical_json(metadata)


def test_skipped_steps_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """The scaler leaves the weights as they are after an overflow; learning rate and average move on."""
    run = prepare(settings(), Flip(), small_base(), examples())
    scaler = run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    assert told_of_overflow(run, 1024.0, 20) == 1024.0
    assert capsys.readouterr().out == ""
    before = [p.detach().clone() for p in run.parameters]
    optimizer = torch.optim.SGD(run.parameters, lr=1.0)
    for _ in range(2):
        for parameter in run.parameters:
            parameter.grad = torch.full_like(parameter, float("inf"))
        scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
    assert all(torch.equal(*pair) for pair in zip(before, run.parameters, strict=True))
    assert told_of_overflow(run, 1024.0, 40) == 256.0
    said = capsys.readouterr().out
    assert "before step 40, at least 2 steps changed nothing (scale 1024 -> 256)" in said
