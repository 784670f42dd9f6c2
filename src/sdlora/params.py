"""The schema of `params.yaml`: every number a user may change, typed, bounded and explained.

`sdlora.settings` reads the file. Nothing here imports torch, so that a mistake is told in a moment.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sdlora import choices
from sdlora.errors import suggest

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Unit = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen, strict section: unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def on_menu(value: str, menu: dict[str, str]) -> str:
    """The value, if the menu has it; a ValueError with the nearest entry if not."""
    if value not in menu:
        raise ValueError(f"{value!r} is not on the menu{suggest(value, menu)}")
    return value


class Base(Section):
    """A base model: a hub id, a local diffusers folder or one `.safetensors` checkpoint."""

    model: str = Field(description="hub id, folder or .safetensors file of the base")
    revision: str | None = Field(None, description="hub revision (commit, tag or branch); null for local files")
    family: str = Field(description="which model adapter reads it: entry of choices.FAMILIES")
    vae: str | None = Field(None, description="hub id or folder of another VAE; null = the base's own")
    vae_revision: str | None = Field(None, description="hub revision of that VAE")
    size_px: int = Field(ge=32, le=4096, multiple_of=8, description="native side of a square picture, px")
    dtype: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="precision of the frozen weights; a CPU keeps fp16 weights in fp32"
    )
    captioner: str = Field(description="hub id or folder of the BLIP that captions pictures for this base")
    captioner_revision: str | None = Field(None, description="hub revision of the captioner")
    learning_rate_scale: float = Field(
        1.0, gt=0, le=1000, description="multiplier on every version's learning rate (1 = the write-ups' own)"
    )

    @field_validator("family")
    @classmethod
    def _known_family(cls, value: str) -> str:
        return on_menu(value, choices.FAMILIES)


class FolderSource(Section):
    """Pictures that lie in a folder."""

    kind: Literal["folder"]
    path: str = Field(description="folder with pictures, searched with its subfolders")


class BingSource(Section):
    """Bing image search through bing-image-downloader."""

    kind: Literal["bing"]
    query: str = Field(min_length=1, max_length=300, description="what to search for")
    limit: int = Field(ge=1, le=1000, description="accepted pictures to stop at")


class SeleniumSource(Section):
    """Image search in a real browser."""

    kind: Literal["selenium"]
    query: str = Field(min_length=1, max_length=300, description="what to search for")
    limit: int = Field(ge=1, le=1000, description="accepted pictures to stop at")
    engine: Literal["bing"] = Field("bing", description="which search engine's page is read")


class HubSource(Section):
    """A Hugging Face image dataset with captions."""

    kind: Literal["hub"]
    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name on the hub")
    revision: str | None = Field(None, description="commit, tag or branch")
    limit: int | None = Field(None, ge=1, description="first rows to take; null = all")


Source = Annotated[FolderSource | BingSource | SeleniumSource | HubSource, Field(discriminator="kind")]


class Dataset(Section):
    """Pictures to learn from and pictures held out to measure against."""

    sources: tuple[Source, ...] = Field(min_length=1, description="where pictures come from, in order")
    trigger: str = Field(min_length=1, max_length=200, description="query or trigger word, first in each caption")
    minimum: int = Field(1, ge=1, description="fewer accepted training pictures than this is an error")
    held_out: int | str = Field(
        0,
        description="references kept from training: how many (chosen by content hash), or a subfolder's name",
    )
    captions_override: str | None = Field(None, description="JSONL of {id or file, caption} that wins over BLIP")
    flip: bool = Field(True, description="false where mirroring changes the meaning (text, one-sided faces)")

    @model_validator(mode="after")
    def _held_out_in_range(self) -> Self:
        if isinstance(self.held_out, int) and self.held_out < 0:
            raise ValueError(f"held_out is {self.held_out}; it must be 0 or more, or a subfolder's name")
        return self


class Fit(Section):
    """How a picture becomes a square."""

    method: Literal["pad", "center_crop"] = Field("pad", description="pad keeps the whole picture")
    fill: str = Field("edge", description="padding: edge, blur (blurred edge) or a colour #rrggbb")
    size_px: int | None = Field(None, ge=32, le=4096, multiple_of=8, description="side, px; null = the base's")

    @field_validator("fill")
    @classmethod
    def _known_fill(cls, value: str) -> str:
        if value not in ("edge", "blur") and not re.fullmatch(r"#[0-9a-f]{6}", value):
            raise ValueError(f"{value!r} is not a fill; choices: edge, blur or a colour such as '#ffffff'")
        return value


class Caption(Section):
    """How BLIP describes a picture."""

    max_new_tokens: int = Field(60, ge=1, le=75, description="longest caption, tokens")
    num_beams: int = Field(1, ge=1, le=16, description="beams of the search; 1 = greedy")
    batch_size: int = Field(8, ge=1, le=256, description="pictures captioned at once")


class Flip(Section):
    """Mirroring as augmentation."""

    probability: Unit = Field(0.5, description="chance that a draw is mirrored, decided by (seed, step, id)")
    swap_words: bool = Field(True, description="swap left and right in the mirrored picture's caption")


class Encode(Section):
    """The latent cache."""

    dtype: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="precision the VAE runs in; latents are stored in fp32"
    )


class LrStage(Section):
    """One stretch of a staged learning-rate schedule."""

    until_step: int = Field(ge=1, description="first step after this stretch")
    learning_rate: float = Field(gt=0, le=10, description="rate at its start")
    schedule: Literal["constant", "cosine"] = Field("constant", description="constant, or cosine to zero")


class Train(Section):
    """One LoRA."""

    rank: int = Field(16, ge=1, le=1024, description="rank r of the update B A")
    alpha: float | None = Field(None, gt=0, description="the update is scaled by alpha / rank; null = rank")
    targets: Literal["attention"] = Field("attention", description="which layers carry a LoRA")
    learning_rate: float = Field(1e-4, gt=0, le=10, description="peak rate, before the base's multiplier")
    optimizer: str = Field("adamw8bit", description="entry of choices.OPTIMIZERS")
    betas: tuple[Unit, Unit] = Field((0.9, 0.999), description="decay rates of the two moments")
    weight_decay: float = Field(1e-2, ge=0, le=10, description="decoupled weight decay")
    epsilon: float = Field(1e-8, gt=0, le=1, description="added to the root of the second moment")
    lr_schedule: str = Field("constant", description="entry of choices.LR_SCHEDULES")
    lr_warmup_steps: int = Field(0, ge=0, description="linear warm-up, optimizer steps")
    lr_cycles: int = Field(1, ge=1, le=100, description="restarts of cosine_with_restarts (1 = plain cosine)")
    lr_stages: tuple[LrStage, ...] = Field((), description="stretches of the schedule 'staged'")
    steps: int = Field(1000, ge=1, le=1_000_000, description="optimizer steps in all")
    batch_size: int = Field(1, ge=1, le=512, description="pictures a forward pass")
    accumulation: int = Field(1, ge=1, le=512, description="forward passes an optimizer step")
    checkpoint_every: int = Field(100, ge=1, description="optimizer steps between checkpoints")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    latents: Literal["sample", "mean"] = Field("sample", description="draw from the posterior each step, or its mean")
    gradient_checkpointing: bool = Field(False, description="less memory, more time")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = Field(
        None, description="autocast type of the forward pass; null = the base's dtype (fp32: no)"
    )
    seed: int = Field(42, ge=0, description="seed of initialisation, order, noise, timesteps and flips")

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, value: str) -> str:
        return on_menu(value, choices.OPTIMIZERS)

    @field_validator("lr_schedule")
    @classmethod
    def _known_lr_schedule(cls, value: str) -> str:
        return on_menu(value, choices.LR_SCHEDULES)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.checkpoint_every > self.steps:
            raise ValueError(
                f"checkpoint_every is {self.checkpoint_every} but steps is {self.steps}: no checkpoint would be "
                f"written; checkpoint_every must be at most steps"
            )
        if (self.lr_schedule == "staged") != bool(self.lr_stages):
            raise ValueError("lr_stages belongs to lr_schedule: staged, and staged needs lr_stages")
        if self.lr_stages and (self.lr_warmup_steps or self.lr_stages[-1].until_step != self.steps):
            raise ValueError("lr_stages must end at `steps`, and a staged schedule has no lr_warmup_steps")
        if self.lr_cycles > 1 and self.lr_schedule != "cosine_with_restarts":
            raise ValueError(f"lr_cycles has no effect with lr_schedule: {self.lr_schedule}")
        if self.lr_warmup_steps and self.lr_schedule == "constant":
            raise ValueError("lr_warmup_steps has no effect with constant; did you mean constant_with_warmup?")
        return self

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """Steps at which a checkpoint is written: every so many, and the last."""
        every = range(self.checkpoint_every, self.steps + 1, self.checkpoint_every)
        return tuple(sorted({*every, self.steps}))

    @property
    def scaling_alpha(self) -> float:
        """alpha, with null meaning rank."""
        return float(self.rank) if self.alpha is None else self.alpha


class Hires(Section):
    """Hires fix: enlarge the picture and denoise it again (image to image)."""

    factor: float = Field(1.5, gt=1, le=4, description="enlargement of each side")
    denoising_strength: float = Field(0.35, gt=0, lt=1, description="share of the schedule that is run again")


class Sample(Section):
    """Pictures drawn at every checkpoint, one for each reference and seed."""

    lora_scale: float = Field(1.0, ge=0, le=4, description="strength of the LoRA")
    guidance_scale: float = Field(7.0, ge=1, le=50, description="classifier-free guidance (CFG)")
    inference_steps: int = Field(30, ge=1, le=1000, description="denoising steps")
    scheduler: str = Field("ddim", description="entry of choices.SCHEDULERS")
    negative_prompt: str = Field("", description="what the picture should not be")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((42,), min_length=1, description="one picture each")
    hires: Hires | None = Field(None, description="null = off")
    max_references: int = Field(10, ge=1, le=1000, description="references drawn and measured, first by id")

    @field_validator("scheduler")
    @classmethod
    def _known_scheduler(cls, value: str) -> str:
        return on_menu(value, choices.SCHEDULERS)


class Evaluate(Section):
    """What is measured, and which checkpoint is called best."""

    metrics: tuple[str, ...] = Field(("psnr_db", "ssim"), min_length=1, description="entries of choices.METRICS")
    choose_by: str = Field("psnr_db", description="the metric whose mean chooses the best step")
    bootstrap_samples: int = Field(2000, ge=100, le=100_000, description="resamples of the 95 % interval")

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(on_menu(name, choices.METRICS) for name in value)

    @model_validator(mode="after")
    def _chosen_is_measured(self) -> Self:
        if self.choose_by not in self.metrics:
            raise ValueError(f"choose_by is {self.choose_by!r}{suggest(self.choose_by, self.metrics)}")
        return self


class Version(Section):
    """One LoRA's settings: what `defaults` says, and what the version states itself."""

    base: str = Field(description="entry of bases")
    dataset: str = Field(description="entry of datasets")
    fit: Fit = Fit()
    caption: Caption = Caption()
    flip: Flip = Flip()
    encode: Encode = Encode()
    train: Train = Train()
    sample: Sample = Sample()
    evaluate: Evaluate = Evaluate()


class Params(Section):
    """All of `params.yaml`."""

    base: str = Field(description="the base of every version that names none")
    dataset: str = Field(description="the dataset of every version that names none")
    run: tuple[Name, ...] = Field(min_length=1, description="versions that `snakemake all` and `dvc repro` make")
    threads: int = Field(2, ge=1, le=256, description="CPU threads of torch; results depend on it")
    keep_runs: int = Field(20, ge=1, le=10_000, description="finished runs kept by recipe in .sdlora/store")
    bases: dict[Name, Base] = Field(min_length=1)
    datasets: dict[Name, Dataset] = Field(min_length=1)
    versions: dict[Name, Version] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        if "report" in self.versions:
            raise ValueError("a version cannot be called report: results/report is the page over all versions")
        for name in self.run:
            if name not in self.versions:
                raise ValueError(f"run names the version {name!r}{suggest(name, self.versions)}")
        return self


#: Every section by the key it stands under, for error messages and docs/params.md.
SECTIONS: dict[str, type[Section]] = {
    "bases": Base, "datasets": Dataset, "versions": Version, "fit": Fit, "caption": Caption, "flip": Flip,
    "encode": Encode, "train": Train, "sample": Sample, "evaluate": Evaluate, "hires": Hires, "lr_stages": LrStage,
    "folder": FolderSource, "bing": BingSource, "selenium": SeleniumSource, "hub": HubSource,
}  # fmt: skip
