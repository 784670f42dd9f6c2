"""How the embedded base is made: the numbers of its recipe."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class BaseRecipe:
    """Sizes and steps of the tiny VAE, BLIP and Stable Diffusion; learning rates are AdamW's."""

    seed: int = 0
    size_px: int = 64
    pictures: int = 100_000
    larger_px: int = 96  # what hires fix draws at; every fourth batch is of these
    larger_pictures: int = 20_000
    captioned_pictures: int = 16_000  # that BLIP alone learns from
    vae_steps: int = 8_000
    vae_batch: int = 8  # small batches learn more from a picture as long as a step's noise is not what limits them
    vae_learning_rate: float = 1e-3
    vae_ema_decay: float = 0.998
    decoder_steps: int = 10_000  # the decoder alone, after the encoder is frozen
    decoder_batch: int = 16
    decoder_learning_rate: float = 5e-4
    blip_steps: int = 9_000
    blip_batch: int = 64
    blip_learning_rate: float = 6e-4
    blip_ema_decay: float = 0.998
    unet_steps: int = 45_000
    unet_batch: int = 32
    unet_learning_rate: float = 5e-4
    unet_ema_decay: float = 0.9995
    caption_dropout: float = 0.1
    tag_dropout: float = 0.1  # each attribute: a prompt need not say everything
    foreign_words: float = 0.1  # of the captions, words before them that say nothing: what a trigger is
    min_snr_gamma: float = 5.0
    save_every: int = 250
    compiled: bool = True  # the UNet's training on a CPU; it takes a minute to begin with

    def as_long(self, batch: int) -> int:
        """As many larger pictures as take the time of a batch; an even number, for two threads."""
        return 2 * max(1, round(batch * (self.size_px / self.larger_px) ** 2 / 2))

    def from_another(self) -> "BaseRecipe":
        """The same recipe for a base that goes on from another's networks: fewer steps, lower rates."""
        return replace(
            self,
            vae_steps=6_000, vae_learning_rate=5e-4, unet_steps=5_400, decoder_steps=1_000,
            blip_steps=2_800, blip_learning_rate=3e-4,
        )  # fmt: skip

    def shortened(self, share: float) -> "BaseRecipe":
        """The same recipe with a share of its pictures and steps and a quarter of its batches, for a rehearsal."""
        values = dict(self.__dict__)
        steps = ("vae_steps", "decoder_steps", "blip_steps", "unet_steps")
        for key in ("pictures", "larger_pictures", "captioned_pictures", *steps):
            values[key] = max(4, round(values[key] * share))
        for key in ("vae_batch", "decoder_batch", "blip_batch", "unet_batch"):
            values[key] //= 4
        return BaseRecipe(**{**values, "compiled": False})
