"""The section `train`: one LoRA, every option of its training."""

import re
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sdlora import choices
from sdlora.config.sections import Section, Unit, each_once, on_menu

Rank = Annotated[int, Field(ge=1, le=1024)]
Decay = Annotated[float, Field(ge=0, lt=1)]

#: Options that only mean something beside another: option -> (the other, its values, default there).
#: They are null elsewhere, so that an option without effect is an error and not a surprise.
DEPENDENT: dict[str, tuple[str, tuple[str, ...], Any]] = {
    "huber_c": ("loss", ("huber",), 0.1),
    "huber_schedule": ("loss", ("huber",), "snr"),
    "snr_gamma": ("weighting", ("min_snr", "soft_min_snr"), 5.0),
    "noise_offset": ("noise", ("offset",), 0.1),
    "pyramid_discount": ("noise", ("pyramid",), 0.3),
    "pyramid_iterations": ("noise", ("pyramid",), 6),
    "d_coef": ("optimizer", ("prodigy",), 1.0),
    "d0": ("optimizer", ("prodigy",), 1e-6),
}
# What an optimizer does not read.
UNREAD = {"adafactor": ("betas", "epsilon"), "lion": ("epsilon",)}
# LoRA options that LoHa and LoKr do not have.
LORA_ONLY = ("rslora", "init", "max_norm", "loraplus_ratio")


def pattern_of_layers(pattern: str) -> re.Pattern[str]:
    """The names that a key of rank_pattern or alpha_pattern means, as peft reads it: those that end in it."""
    return re.compile(rf"(.*\.)?({pattern})$")


class LrStage(Section):
    """One stage of a staged learning-rate schedule."""

    until_step: int = Field(ge=1, description="last step of this stage")
    learning_rate: float = Field(gt=0, le=10, description="rate at its start")
    schedule: Literal["constant", "cosine"] = Field("constant", description="constant, or cosine to zero")


class Ema(Section):
    """A moving average of the LoRA, saved beside the raw one as `ema/`; `sample.weights: ema` samples with it."""

    decay: float = Field(
        0.995,
        gt=0,
        lt=1,
        description="highest decay; update n uses min(decay, (1 + n) / (10 + n)), 0.995 from n = 1790",
    )
    update_every: int = Field(1, ge=1, description="steps between updates; the decay is raised to this power")


class TextEncoder(Section):
    """A LoRA on the text encoders too (attention layers)."""

    rank: Rank = Field(8, description="its rank")
    alpha: float | None = Field(None, gt=0, description="its alpha; null = rank")
    learning_rate: float = Field(5e-5, gt=0, le=10, description="its own peak rate, before the base's multiplier")


class Pivotal(Section):
    """Pivotal tuning: the trigger becomes new tokens whose embeddings are learnt (textual inversion, 2208.01618)."""

    vectors: int = Field(2, ge=1, le=32, description="tokens that stand for the trigger")
    learning_rate: float = Field(
        1e-3, gt=0, le=10, description="peak rate of the embeddings, before the base's multiplier"
    )


class Prior(Section):
    """Prior preservation (DreamBooth, 2208.12242): pictures of the class, sampled by the base, are learnt, too."""

    prompt: str = Field(min_length=1, description="the class, as the base knows it: 'toon head', 'person'")
    pictures: int = Field(20, ge=1, le=2000, description="how many are sampled, once, before training")
    weight: float = Field(1.0, gt=0, le=100, description="weight of their loss")


class Train(Section):
    """One LoRA."""

    lora_type: str = Field("lora", description="which kind of update is learnt")
    rank: Rank = Field(16, description="rank r of the update B A")
    alpha: float | None = Field(None, gt=0, description="the update is scaled by alpha / rank; null = rank")
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead (rsLoRA, 2312.03732)")
    init: Literal["gaussian", "kaiming", "pissa", "olora"] = Field(
        "gaussian",
        description="start of A and B; PiSSA (2404.02948) and OLoRA (2406.01775) start from the base's weights",
    )
    targets: str = Field("attention", description="which layers carry a LoRA")
    rank_pattern: dict[str, Rank] = Field({}, description="other ranks for layers whose name matches a regex")
    alpha_pattern: dict[str, float] = Field({}, description="other alphas, likewise")
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share set to zero, by (seed, step): of a LoRA's or DoRA's inputs, of the rows of a LoHa's or "
        "LoKr's update",
    )
    max_norm: float | None = Field(None, gt=0, description="largest norm of B A alpha / r after a step; null = none")
    loraplus_ratio: float = Field(
        1.0, ge=1, le=1000, description="learning rate of B over that of A (LoRA+, 2402.12354)"
    )
    text_encoder: TextEncoder | None = Field(None, description="a LoRA on the text encoders; null = none")
    pivotal: Pivotal | None = Field(None, description="learn the trigger's embedding; null = no")
    prior: Prior | None = Field(None, description="prior preservation; null = none")

    learning_rate: float = Field(1e-4, gt=0, le=10, description="peak rate, before the base's multiplier")
    optimizer: str = Field("adamw", description="the optimizer")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="decay rates of the two moments")
    weight_decay: float = Field(1e-2, ge=0, le=10, description="decoupled weight decay")
    epsilon: float = Field(1e-8, gt=0, le=1, description="added to the root of the second moment (Adam family)")
    d_coef: float | None = Field(None, gt=0, le=100, description="Prodigy: factor on its estimate; null = 1")
    d0: float | None = Field(None, gt=0, le=1, description="Prodigy: first estimate; null = 1e-6")
    lr_schedule: str = Field("constant", description="how the learning rate changes from its peak")
    lr_warmup_steps: int = Field(0, ge=0, description="linear warm-up, optimizer steps")
    lr_cycles: int = Field(1, ge=1, le=100, description="cycles of cosine_with_restarts (1 = plain cosine)")
    lr_stages: tuple[LrStage, ...] = Field((), description="of 'staged'; other rates keep their ratio to learning_rate")
    ema: Ema | None = Field(None, description="average of the LoRA; null = none")

    loss: str = Field("mse", description="squared error, or Huber's loss")
    huber_c: float | None = Field(
        None, gt=0, le=10, description="Huber: error at which it turns from quadratic to linear; null = 0.1"
    )
    huber_schedule: Literal["constant", "exponential", "snr"] | None = Field(
        None, description="Huber: how that point falls with the noise (2403.16728); null = snr"
    )
    weighting: str = Field("none", description="how the loss is weighted by timestep")
    snr_gamma: float | None = Field(None, gt=0, le=1000, description="gamma of min-SNR weights; null = 5")
    timestep_sampling: Literal["logit_normal", "uniform"] | None = Field(
        None, description="flow matching only: how noise levels are drawn (2403.03206); null = logit_normal"
    )
    timestep_shift: float | None = Field(
        None, gt=0, le=100, description="flow matching only: s of s t / (1 + (s - 1) t); null = the base's own"
    )
    noise: tuple[str, ...] = Field((), description="what is added to the noise, in this order")
    noise_offset: float | None = Field(
        None, gt=0, le=1, description="standard deviation of a channel's offset; null = 0.1"
    )
    pyramid_discount: float | None = Field(None, gt=0, lt=1, description="weight of each coarser noise; null = 0.3")
    pyramid_iterations: int | None = Field(None, ge=1, le=16, description="coarser noises at most; null = 6")
    input_perturbation: float = Field(
        0.0, ge=0, le=1, description="extra noise on the input only (2301.11706), standard deviation"
    )

    steps: int = Field(1000, ge=1, le=1_000_000, description="optimizer steps in total")
    batch_size: int = Field(1, ge=1, le=512, description="pictures per forward pass")
    accumulation: int = Field(1, ge=1, le=512, description="forward passes per optimizer step")
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="processes that compute a step together, each on a GPU of its own where there are any; must "
        "divide accumulation or batch_size",
    )
    checkpoint_every: int = Field(100, ge=1, description="optimizer steps between checkpoints")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    latents: Literal["sample", "mean"] = Field("sample", description="draw from the posterior each step, or its mean")
    mask: Literal["none", "padding", "user"] = Field(
        "padding",
        description="what the loss leaves out: nothing; padding; padding and what the dataset's masks leave out",
    )
    mask_floor: Unit = Field(
        0.0, description="what cells outside the mask weigh at least; 0 leaves them free, 1 is mask: none"
    )
    shuffle_tags: bool = Field(False, description="shuffle a caption's comma-separated tags at every draw")
    keep_tokens: int = Field(1, ge=1, le=75, description="first tags that are neither shuffled nor dropped")
    tag_dropout: float = Field(0.0, ge=0, lt=1, description="chance that a draw leaves a tag out, each by itself")
    caption_dropout: float = Field(0.0, ge=0, lt=1, description="chance that a draw has an empty caption")
    cache_latents: Literal["disk", "ram", "none"] = Field(
        "disk",
        description="latents: files shared by versions; made by each training; made at each draw (VAE in memory)",
    )
    cache_text: Literal["disk", "ram", "none"] | None = Field(
        None, description="text embeddings, likewise; null = ram, or none where captions or their embeddings change"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, more time")
    compile: Literal["none", "blocks"] = Field(
        "none",
        description="GPU only: compile the blocks that the denoiser repeats; the log says when that pays off",
    )
    mixed_precision: Literal["no", "bf16", "fp16"] | None = Field(
        None, description="autocast type of the forward pass; null = the base's dtype (fp32: no)"
    )
    deterministic: bool = Field(
        True, description="only algorithms that give the same bytes each time; false, GPU only: the fastest"
    )
    seed: int = Field(42, ge=0, description="seed of initialisation, order, noise, timesteps and flips")
    seeds: int = Field(
        1,
        ge=1,
        le=20,
        description="trainings, with seed, seed + 1, ...: each further one is a version <name>-seed<n> of its own",
    )

    @field_validator("optimizer", "lr_schedule", "lora_type", "targets", "loss", "weighting")
    @classmethod
    def _on_its_menu(cls, value: str, info: Any) -> str:
        return on_menu(value, MENUS[info.field_name])

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _regular_expressions(cls, value: dict[str, Any]) -> dict[str, Any]:
        for pattern in value:
            try:
                pattern_of_layers(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return value

    @field_validator("noise")
    @classmethod
    def _known_noises(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        each_once("noise", value)
        return tuple(on_menu(name, choices.NOISES) for name in value)

    @field_validator("lr_stages")
    @classmethod
    def _stages_follow_each_other(cls, value: tuple[LrStage, ...]) -> tuple[LrStage, ...]:
        ends = [stage.until_step for stage in value]
        if any(after <= before for before, after in pairwise(ends)):
            raise ValueError(f"until_step is {', '.join(map(str, ends))}; each stage must end after the one before it")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for problem in (
            *self._steps_problems(),
            *self._option_problems(),
            *self._schedulefree_problems(),
            *self._lora_problems(),
            *self._data_problems(),
        ):
            raise ValueError(problem)
        return self

    def _steps_problems(self) -> list[str]:
        found = []
        if self.checkpoint_every > self.steps:
            found.append(
                f"checkpoint_every is {self.checkpoint_every} but steps is {self.steps}: no checkpoint would be "
                f"written; checkpoint_every must be at most steps"
            )
        if self.accumulation % self.processes and self.batch_size % self.processes:
            found.append(
                f"processes: {self.processes} divides neither accumulation ({self.accumulation}) nor batch_size "
                f"({self.batch_size}), so a step's pictures cannot be shared out evenly"
            )
        if (self.lr_schedule == "staged") != bool(self.lr_stages):
            found.append("lr_stages belongs to lr_schedule: staged, and staged needs lr_stages")
        if self.lr_stages and (self.lr_warmup_steps or self.lr_stages[-1].until_step != self.steps):
            found.append("lr_stages must end at `steps`, and a staged schedule has no lr_warmup_steps")
        if self.lr_cycles > 1 and self.lr_schedule != "cosine_with_restarts":
            found.append(f"lr_cycles has no effect with lr_schedule: {self.lr_schedule}")
        if self.lr_warmup_steps >= self.steps:
            found.append(f"lr_warmup_steps is {self.lr_warmup_steps} of {self.steps} steps: the peak is never reached")
        if self.lr_warmup_steps and self.lr_schedule == "constant":
            found.append("lr_warmup_steps has no effect with constant; did you mean constant_with_warmup?")
        return found

    def _option_problems(self) -> list[str]:
        found = []
        for option, (other, values, _) in DEPENDENT.items():
            if getattr(self, option) is not None and not self._has(option):
                found.append(f"{option} has no effect without {other}: {' or '.join(values)}")
        for option in UNREAD.get(self.optimizer, ()):
            if getattr(self, option) != Train.model_fields[option].default:
                found.append(f"{option} has no effect with optimizer: {self.optimizer}")
        if self.optimizer == "prodigy" and (self.loraplus_ratio != 1 or self.text_encoder or self.pivotal):
            found.append(
                "prodigy takes one learning rate for all parameters, so loraplus_ratio, text_encoder and pivotal "
                "need another optimizer"
            )
        untried = self.lora_type in ("loha", "lokr") or self.dropout or self.gradient_checkpointing
        if self.compile == "blocks" and untried:
            found.append(
                "compile: blocks was not tried with lora_type loha or lokr, dropout or gradient_checkpointing: leave "
                "one of them out"
            )
        return found

    def _schedulefree_problems(self) -> list[str]:
        found: list[str] = []
        if self.optimizer != "schedulefree_adamw":
            return found
        if not self.betas[0]:
            found.append("betas.0 is 0, but schedulefree_adamw divides by it: it must be more")
        for option in ("max_norm", "ema"):
            if getattr(self, option) is not None:
                found.append(
                    f"{option} acts on the point that is trained, but schedulefree_adamw saves another, its average: "
                    f"leave {option} out"
                )
        if self.lr_schedule not in ("constant", "constant_with_warmup"):
            found.append(f"schedulefree_adamw replaces a schedule; lr_schedule: {self.lr_schedule} would fight it")
        return found

    def _lora_problems(self) -> list[str]:
        found = []
        if self.lora_type in ("loha", "lokr"):
            for option in LORA_ONLY:
                if getattr(self, option) != Train.model_fields[option].default:
                    found.append(f"{option} does not apply to lora_type: {self.lora_type}")
        if self.lora_type == "dora" and self.max_norm is not None:
            found.append("max_norm does not apply to lora_type: dora, which keeps a magnitude of its own")
        if self.init in ("pissa", "olora"):
            if self.lora_type == "dora":
                found.append(f"init: {self.init} changes the base's weights, which DoRA's magnitudes are taken from")
            if self.max_norm is not None:
                found.append(f"max_norm does not apply to init: {self.init}, whose B A is not the update")
            if self.targets == "all":
                found.append(f"init: {self.init} factors matrices, and targets: all has convolutions")
        return found

    def _data_problems(self) -> list[str]:
        found = []
        if self.cache_text not in (None, "none"):
            if self.changes_tags:
                option = "shuffle_tags" if self.shuffle_tags else "tag_dropout"
                found.append(
                    f"cache_text: {self.cache_text} cannot hold captions that {option} makes anew at every draw; "
                    f"set cache_text: none, or leave it out"
                )
            if self.learns_text:
                option = "text_encoder" if self.text_encoder else "pivotal"
                found.append(f"cache_text: {self.cache_text} would hold embeddings that {option} changes at every step")
        if self.mask_floor and self.mask == "none":
            found.append("mask_floor has no effect with mask: none, which learns every cell")
        if self.keep_tokens > 1 and not self.changes_tags:
            found.append("keep_tokens has no effect without shuffle_tags or tag_dropout")
        return found

    @property
    def of_one_process(self) -> "Train":
        """What one of the processes computes at a time, on which its memory depends."""
        if self.accumulation % self.processes == 0:
            return self
        return self.model_copy(update={"batch_size": self.batch_size // self.processes})

    @property
    def changes_tags(self) -> bool:
        """Whether a caption's tags differ from draw to draw."""
        return self.shuffle_tags or self.tag_dropout > 0

    @property
    def learns_text(self) -> bool:
        """Whether what the denoiser is told about a caption changes as the training goes on."""
        return self.text_encoder is not None or self.pivotal is not None

    @property
    def text_cache(self) -> str:
        """cache_text, with null meaning what the captions allow."""
        return self.cache_text or ("none" if self.changes_tags or self.learns_text else "ram")

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """Steps at which a checkpoint is written: every so many, and the last."""
        every = range(self.checkpoint_every, self.steps + 1, self.checkpoint_every)
        return tuple(sorted({*every, self.steps}))

    @property
    def scaling_alpha(self) -> float:
        """alpha, with null meaning rank."""
        return float(self.rank) if self.alpha is None else self.alpha

    def precision(self, dtype: str) -> str:
        """The `mixed_precision` that trains on a base of a type: with null, the base's own; fp32 needs none."""
        return self.mixed_precision or {"fp32": "no"}.get(dtype, dtype)

    def _has(self, option: str) -> bool:
        """Whether what a dependent option depends on is chosen."""
        other, values, _ = DEPENDENT[option]
        chosen = getattr(self, other)
        return bool(set(values) & {*(chosen if other == "noise" else [chosen])})

    def dependent(self) -> dict[str, Any]:
        """The values of the dependent options that mean something here."""
        return {option: self.value(option) for option in DEPENDENT if self._has(option)}

    def value(self, option: str) -> Any:
        """A dependent option's value, with null meaning its default."""
        chosen = getattr(self, option)
        return DEPENDENT[option][2] if chosen is None else chosen


MENUS = {
    "optimizer": choices.OPTIMIZERS,
    "lr_schedule": choices.LR_SCHEDULES,
    "lora_type": choices.LORA_TYPES,
    "targets": choices.TARGETS,
    "loss": choices.LOSSES,
    "weighting": choices.WEIGHTINGS,
}
