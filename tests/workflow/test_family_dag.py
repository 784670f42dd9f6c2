"""Families through the front door: one by a file and a line, and one that learns flow matching.

Both on small bases with random weights (`tests/shapes.py`): the first on the one that tests' projects have as
`models/tiny-sd`, the second on `save_small_sd3`'s.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from helpers import ROOT, Project, make_project
from menu_cases import cases, needs_another_base
from safetensors import safe_open
from shapes import save_small_sd3

from sdlora import records
from sdlora.lora.names import FILE_NAME

PARAMS = """
base: skip
dataset: small
run: [skip, flow, uniform]
threads: 1
bases:
  skip: {model: models/tiny-sd, family: clip-skip, size_px: 64, captioner: models/tiny-blip}
  sd3: {model: models/small-sd3, family: sd3, size_px: 64, captioner: models/tiny-blip}
datasets:
  small:
    sources: [{kind: folder, path: data/embedded/small}]
    trigger: captain
    held_out: references
defaults:
  train: {rank: 2, alpha: 1.0, optimizer: adamw, steps: 2, checkpoint_every: 2, learning_rate: 1e-2}
  sample: {inference_steps: 2, max_references: 1, negative_prompt: blurry}
  evaluate: {bootstrap_samples: 100, metrics: [psnr_db], choose_by: psnr_db}
versions:
  skip:
    sample: {hires: {factor: 1.25, denoising_strength: 0.5}}
  flow: &flow
    base: sd3
    train: &options {timestep_sampling: logit_normal, timestep_shift: 0.5, prior: {prompt: toon head, pictures: 1}}
    sample:
      second_prompt: a face
      second_negative_prompt: blurry
      scheduler: flow_euler
      hires: {factor: 1.25, denoising_strength: 0.5}
  uniform:
    <<: *flow
    train: {timestep_sampling: uniform, text_encoder: {rank: 2}, gradient_checkpointing: true, targets: all}
    export: {dtype: fp16}
  refused:
    <<: *flow
    train: {weighting: min_snr}
  drawn-wrongly:
    <<: *flow
    sample: {scheduler: ddim}
"""
LINE = '    "clip-skip": "sdlora.models.clip_skip:ClipSkip",\n'
REFUSED = {
    "refused": "train.weighting is min_snr, which weighs by the signal-to-noise ratio, and flow_matching",
    "drawn-wrongly": "cannot draw with a base that learns flow_matching; choices: flow_euler",
}
MADE = ("skip", "flow", "uniform")


@pytest.fixture(scope="module")
def project(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = make_project(tmp_path_factory.mktemp("f") / "p", PARAMS, served)
    save_small_sd3(project.folder / "models/small-sd3")
    toy = (ROOT / "tests/toy_family.py").read_text("utf-8")
    (project.folder / "src/sdlora/models/clip_skip.py").write_text(toy, encoding="utf-8")
    project.edit("src/sdlora/choices.py", "FAMILIES = {\n", f"FAMILIES = {{\n{LINE}")
    goals = [f"results/{name}/report/index.html" for name in MADE]
    goals += [f"results/{name}/README.md" for name in MADE]
    said = project.snakemake("--resources", "gpu=1", "--keep-going", *goals, check=False)
    (project.folder / "output.txt").write_text(said, encoding="utf-8")
    yield project


def log_of(project: Project, version: str, stage: str) -> str:
    return (project.folder / f"logs/{version}/{stage}.log").read_text("utf-8")


def test_every_setting_of_another_base_is_in_some_version() -> None:
    for case in cases():
        if needs_another_base(case):
            ((name, value),) = case.settings
            assert f"{name.split('.')[1]}: {value}" in PARAMS, str(case)


@pytest.mark.parametrize("version", MADE)
def test_a_family_goes_through_every_stage(project: Project, version: str) -> None:
    results = project.folder / "results" / version
    assert (results / "metrics.csv").exists(), project.read("output.txt").decode()[-4000:]
    assert {row["step"] for row in records.read_csv(results / "metrics.csv")} == {"0", "2"}
    drawn = [next((results / f"samples/step-{step:06d}").glob("*.png")).read_bytes() for step in (0, 2)]
    assert drawn[0] != drawn[1]
    assert (results / "report/index.html").exists()


def test_clip_skip_has_kohyas_file(project: Project) -> None:
    (kohya,) = (project.folder / "results/skip/export").rglob("*a1111.safetensors")
    with safe_open(kohya, framework="pt") as file:
        said = file.metadata()
        assert all(name.startswith("lora_unet_") for name in file.keys())  # noqa: SIM118
    assert (said["ss_base_model_version"], said["ss_clip_skip"]) == ("sd_v1", "2")


def test_sd3_has_diffusers_file_and_says_that_it_has_no_other(project: Project) -> None:
    assert "only diffusers' file is written: family sd3 has no names in kohya's format" in log_of(
        project, "flow", "export"
    )
    exported = [path.name for path in (project.folder / "results/uniform/export").rglob("*.safetensors")]
    assert exported == ["uniform-step000002-diffusers-fp16.safetensors"]
    assert not list((project.folder / "results/flow/export").rglob("*.safetensors"))
    card = (project.folder / "results/flow/README.md").read_text("utf-8")
    assert "StableDiffusion3Pipeline" in card and "- stable-diffusion-3" in card and "A1111" not in card


def test_plain_diffusers_reads_sd3s_file(project: Project) -> None:
    pipeline = StableDiffusion3Pipeline.from_pretrained(project.folder / "models/small-sd3")
    folder = project.folder / "results/uniform/checkpoints/step-000002"
    pipeline.load_lora_weights(folder, weight_name=FILE_NAME)
    for network in (pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2):
        loaded = [module for module in network.modules() if hasattr(module, "lora_B")]
        assert loaded and any(p.abs().sum() > 0 for module in loaded for p in module.lora_B.parameters())
        assert all(torch.isfinite(p).all() for module in loaded for p in module.parameters())
    header = json.loads(safe_header(folder / FILE_NAME)["lora_adapter_metadata"])
    assert (header["transformer.r"], header["transformer.lora_alpha"]) == (2, 1.0)


def safe_header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize("version", REFUSED)
def test_what_the_objective_does_not_have_is_a_sentence(project: Project, version: str) -> None:
    said = project.snakemake(f"results/{version}/metrics.csv", check=False)
    assert f"error: version {version}: " in said and REFUSED[version] in said and "Traceback" not in said
    assert not (project.folder / f"results/{version}").exists(), "before the first job"
