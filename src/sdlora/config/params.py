"""The schema of `params.yaml`: every number a user may change, typed, bounded and explained.

`sdlora.config.load` reads the file. Nothing here imports torch, so that a mistake is told in a moment.
"""

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from sdlora import choices
from sdlora.config.animate import Animate
from sdlora.config.caption import Caption
from sdlora.config.dataset import Dataset
from sdlora.config.evaluate import Evaluate
from sdlora.config.sample import Hires, Sample
from sdlora.config.sections import Name, ProblemAt, Section, Unit, on_menu
from sdlora.config.sources import BingSource, FolderSource, HubSource, Scrape, SeleniumSource
from sdlora.config.studies import Claim, Studies
from sdlora.config.train import Ema, LrStage, Pivotal, Prior, TextEncoder, Train
from sdlora.errors import suggest
from sdlora.lora.names import word_of

RESULTS_OF_ALL = {
    "report": "the page over all versions",
    "compare": "where comparisons of two versions lie",
    "base": "where the embedded base is measured",
    "searches": "where the pages of searches lie",
    "studies": "where the findings of studies lie",
}
MOST_SEEDS = 20


def training_names(name: str, seed: int, seeds: int) -> list[str]:
    """The versions that `train.seeds` makes of one, itself first."""
    return [name, *(f"{name}-seed{seed + further}" for further in range(1, seeds))]


class Base(Section):
    """A base model: a hub id, a local diffusers folder or one `.safetensors` checkpoint."""

    model: str = Field(description="hub id, folder or .safetensors file of the base")
    revision: str | None = Field(None, description="hub revision (commit, tag or branch); null for local files")
    family: str = Field(description="which kind of model it is")
    vae: str | None = Field(None, description="hub id or folder of another VAE; null = the base's own")
    vae_revision: str | None = Field(None, description="hub revision of that VAE")
    size_px: int = Field(ge=32, le=4096, multiple_of=8, description="native side of a square picture, px")
    dtype: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="precision of the frozen weights; a CPU keeps fp16 weights in fp32"
    )
    captioner: str = Field(description="hub id or folder of the BLIP that captions pictures for this base")
    captioner_revision: str | None = Field(None, description="hub revision of the captioner")
    learning_rate_scale: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="multiplier on a version's rates, also of text encoder and pivotal, not with prodigy "
        "(1 = the write-ups' own)",
    )
    guidance_scale_factor: float = Field(
        1.0,
        gt=0,
        le=10,
        description="multiplier on every version's sample.guidance_scale; the product is at least 1",
    )

    @field_validator("family")
    @classmethod
    def _known_family(cls, value: str) -> str:
        return on_menu(value, choices.FAMILIES)

    def guiding(self, sample: Sample) -> Sample:
        """A version's drawing with the guidance that this base is drawn with."""
        guidance = max(1.0, sample.guidance_scale * self.guidance_scale_factor)
        return sample.model_copy(update={"guidance_scale": guidance})


class Fit(Section):
    """How a picture becomes a square, or one of a few shapes of nearly the same area."""

    method: Literal["pad", "center_crop", "bucket"] = Field(
        "pad",
        description="pad and bucket keep the whole picture: in a square, or in the nearest of a list of shapes",
    )
    fill: str = Field("edge", description="padding: edge, blur (blurred edge) or a colour #rrggbb")
    size_px: int | None = Field(None, ge=32, le=4096, multiple_of=8, description="side, px; null = the base's")
    bucket_step_px: int | None = Field(
        None,
        ge=8,
        le=256,
        multiple_of=8,
        description="multiple of a bucket's sides, px; null = an eighth of size_px, 8 to 64",
    )
    bucket_max_aspect: float | None = Field(
        None, ge=1, le=8, description="longest bucket: longer side / shorter side; null = 2"
    )

    @field_validator("fill", mode="before")
    @classmethod
    def _known_fill(cls, value: object) -> object:
        if value is None:
            raise ValueError("there is no value; a colour needs quotes, such as '#ffffff': a bare # begins a comment")
        if value not in ("edge", "blur") and not re.fullmatch(r"#[0-9a-f]{6}", str(value)):
            raise ValueError(f"{value!r} is not a fill; choices: edge, blur or a colour in small letters, '#ffffff'")
        return value

    @model_validator(mode="after")
    def _buckets_apply(self) -> Self:
        for name in ("bucket_step_px", "bucket_max_aspect"):
            if self.method != "bucket" and getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect with method: {self.method}; did you mean method: bucket?")
        if self.method == "bucket" and self.size_px and (self.bucket_step_px or 8) > self.size_px:
            raise ValueError(f"bucket_step_px is {self.bucket_step_px}, more than size_px ({self.size_px})")
        return self


class Flip(Section):
    """Mirroring as augmentation."""

    probability: Unit = Field(0.5, description="chance that a draw is mirrored, decided by (seed, draw, id)")
    swap_words: bool = Field(True, description="swap left and right in the mirrored picture's caption")
    kohya: Literal["none", "folders", "metadata"] = Field(
        "none",
        description="also write the set for kohya's trainer: a .txt beside each picture in "
        "<repeats>_<trigger>/, or its metadata JSON",
    )


class Encode(Section):
    """The latent cache."""

    dtype: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="precision the VAE runs in; latents are stored in fp32"
    )


class Export(Section):
    """The LoRA's files for other tools."""

    dtype: Literal["fp32", "fp16", "bf16"] = Field(
        "fp32",
        description="type of the files for A1111, ComfyUI and kohya; fp16 and bf16: half the size, named so, and a "
        "copy for diffusers, whose own file stays fp32",
    )
    dora_whole: Literal["none", "last", "every"] = Field(
        "last",
        description="checkpoints of a DoRA that get a file for A1111 and ComfyUI, which misread DoRA's own: whole "
        "updates, as large as the layers they change",
    )


class Lora(Section):
    """A LoRA that is not trained for the version: a file, or a checkpoint of another version."""

    file: str | None = Field(None, min_length=1, description="a .safetensors file, or the folder of one")
    version: str | None = Field(None, description="a version that is trained here, instead of a file")
    step: int | None = Field(None, ge=1, description="its checkpoint; null = the chosen one")
    weight: float = Field(1.0, ge=-4, le=4, description="its weight among the others; sample.lora_scale scales all")

    @model_validator(mode="after")
    def _says_which(self) -> Self:
        if (self.file is None) == (self.version is None):
            raise ValueError("a LoRA is named by its file or by its version: set one of them")
        if self.step is not None and self.version is None:
            raise ValueError(f"step is {self.step}, but a file has no steps: it goes with version")
        return self


class Version(Section):
    """One LoRA's settings: what `defaults` says, and what the version states itself."""

    base: str = Field(description="entry of bases")
    dataset: str = Field(description="entry of datasets")
    preset: str | None = Field(None, description="entry of presets to start from; null = none")
    remark: str = Field("", max_length=500, description="what you found, shown in the table of versions")
    chosen: int | None = Field(
        None, ge=1, description="a checkpoint of your choice, which overrules the rule everywhere; null = the rule"
    )
    lora: tuple[Lora, ...] | None = Field(
        None,
        min_length=1,
        description="a LoRA from elsewhere (file or folder), or several: measured like any version, but nothing is "
        "trained; null = train",
    )
    fit: Fit = Fit()
    caption: Caption = Caption()
    flip: Flip = Flip()
    encode: Encode = Encode()
    train: Train = Train()
    sample: Sample = Sample()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    animate: Animate | None = Field(None, description="animate a picture; null = no, {} = with the model's own numbers")

    @model_validator(mode="after")
    def _metrics_have_what_they_need(self) -> Self:
        for name in self.evaluate.metrics:
            needs = choices.pick(choices.METRICS, name).needs
            for option in ("seeds", "report_seeds"):
                if "seeds" in needs and len(set(getattr(self.sample, option))) < 2:
                    raise ValueError(
                        f"evaluate.metrics has {name}, which compares seeds, but sample.{option} has one: add one"
                    )
            if "describe" in needs and self.caption.by == "none":
                raise ValueError(f"evaluate.metrics has {name}, which describes samples, but caption.by is none")
            if "training" in needs and self.sample.max_references < 2:
                raise ValueError(
                    f"evaluate.metrics has {name}, which needs two held-out pictures; raise sample.max_references to 2"
                )
        return self

    @model_validator(mode="after")
    def _chosen_is_a_checkpoint(self) -> Self:
        steps = self.train.checkpoint_steps if self.lora is None else (1,)
        if self.chosen is not None and self.chosen not in steps:
            raise ValueError(f"chosen is {self.chosen}, but the checkpoints are {', '.join(map(str, steps))}")
        return self

    @field_validator("lora", mode="before")
    @classmethod
    def _one_file(cls, value: object) -> object:
        return ({"file": value},) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _average_exists(self) -> Self:
        if self.lora is not None and self.sample.average:
            raise ValueError("sample.weights is ema, but nothing is trained here: a LoRA's file has no average")
        if self.sample.average and self.train.ema is None:
            raise ValueError("sample.weights is ema, but train.ema is null: there is no average to draw with")
        return self


class Params(Section):
    """All of `params.yaml`."""

    base: str = Field(description="the base of every version that names none")
    dataset: str = Field(description="the dataset of every version that names none")
    run: tuple[Name, ...] = Field(min_length=1, description="versions that `snakemake all` and `dvc repro` make")
    scraping: bool = Field(
        False,
        description="true allows sources that ask the web (bing, selenium, hub); read docs/scraping.md before",
    )
    threads: int = Field(2, ge=1, le=256, description="CPU threads of torch; results depend on it")
    keep_runs: int = Field(20, ge=1, le=10_000, description="finished trainings kept in .sdlora/store")
    bases: dict[Name, Base] = Field(min_length=1)
    datasets: dict[Name, Dataset] = Field(min_length=1)
    presets: dict[Name, Version] = Field({}, description="named blocks of settings a version can start from")
    versions: dict[Name, Version] = Field(min_length=1)

    def trainings(self, name: str) -> list[str]:
        """A version and those of its further trainings."""
        version = self.versions[name]
        return training_names(name, version.train.seed, version.train.seeds if version.lora is None else 1)

    @property
    def made(self) -> list[str]:
        """What `run` makes: its versions and their further trainings."""
        return list(dict.fromkeys(training for name in self.run for training in self.trainings(name)))

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for name in sorted(RESULTS_OF_ALL.keys() & self.versions.keys()):
            reason = f"a version cannot be called {name}: results/{name} is {RESULTS_OF_ALL[name]}"
            raise ProblemAt(("versions", name), reason)
        for number, name in enumerate(self.run):
            if name not in self.versions:
                raise ProblemAt(("run", number), f"there is no version {name!r}{suggest(name, self.versions)}")
        return self

    @model_validator(mode="after")
    def _datasets_have_what_versions_ask_for(self) -> Self:
        for name, version in self.versions.items():
            dataset = self.datasets.get(version.dataset)
            if dataset is None or version.lora is not None:  # told by settings.load, with the nearest name
                continue
            if version.train.mask == "user" and dataset.masks is None:
                raise ProblemAt(
                    ("versions", name, "train", "mask"),
                    f"'user' is not allowed: datasets.{version.dataset}.masks is not set; set it to alpha or to a "
                    f"folder of masks",
                )
            if version.train.pivotal is not None and not word_of(dataset.trigger):
                raise ProblemAt(
                    ("versions", name, "train", "pivotal"),
                    f"its token is named by the letters a to z and digits of the trigger, and {dataset.trigger!r} of "
                    f"datasets.{version.dataset} has none; add a word",
                )
            tags = dataset.trigger.count(",") + 1
            if version.train.changes_tags and version.train.keep_tokens < tags:
                raise ProblemAt(
                    ("versions", name, "train", "keep_tokens"),
                    f"{version.train.keep_tokens} is too few: the trigger {dataset.trigger!r} of "
                    f"datasets.{version.dataset} has {tags} tags: they would be shuffled",
                )
        return self

    @model_validator(mode="after")
    def _buckets_fit_into_the_base(self) -> Self:
        for name, version in self.versions.items():
            base, step = self.bases.get(version.base), version.fit.bucket_step_px
            if base and step and version.fit.size_px is None and step > base.size_px:
                raise ProblemAt(
                    ("versions", name, "fit", "bucket_step_px"),
                    f"{step} is more than bases.{version.base}.size_px ({base.size_px}), which size_px: null means",
                )
        return self

    @model_validator(mode="after")
    def _mixed_versions_are_trained(self) -> Self:
        trained = {name: version for name, version in self.versions.items() if version.lora is None}
        for name, version in self.versions.items():
            for number, one in enumerate(version.lora or ()):
                where = ("versions", name, "lora", number)
                if one.version is not None and one.version not in trained:
                    reason = f"{one.version!r} is not trained here{suggest(one.version, trained)}"
                    raise ProblemAt((*where, "version"), reason)
                steps = trained[one.version].train.checkpoint_steps if one.version else ()
                if one.step is not None and one.step not in steps:
                    raise ProblemAt(
                        (*where, "step"),
                        f"{one.step} is none of the checkpoints of {one.version}: {', '.join(map(str, steps))}",
                    )
        return self


class StudiedParams(Params):
    """The same with the versions that `studies.yaml` compares."""

    studies: Studies
    compared: dict[Name, tuple[str, str]]  # of each claim the version it starts from, or `base`, and the changed one

    @model_validator(mode="after")
    def _claims_are_measured(self) -> Self:
        for name, claim in self.studies.claims.items():
            measured = self.versions[self.compared[name][1]].evaluate.metrics
            for key, named in (("better", claim.better), ("same", claim.same)):
                for metric in named:
                    if metric not in measured:
                        reason = f"{metric!r} is not measured: evaluate.metrics of its start are {', '.join(measured)}"
                        raise ProblemAt(("claims", name, key), reason)
        return self


#: Every section by the key it stands under, for error messages and docs/params.md.
SECTIONS: dict[str, type[Section]] = {
    "bases": Base, "datasets": Dataset, "versions": Version, "lora": Lora, "fit": Fit, "caption": Caption, "flip": Flip,
    "encode": Encode, "train": Train, "sample": Sample, "evaluate": Evaluate, "export": Export, "animate": Animate,
    "hires": Hires, "lr_stages": LrStage, "ema": Ema, "text_encoder": TextEncoder,
    "pivotal": Pivotal, "prior": Prior, "scrape": Scrape,
    "studies": Studies, "claims": Claim,
    "folder": FolderSource, "bing": BingSource, "selenium": SeleniumSource, "hub": HubSource,
}  # fmt: skip
