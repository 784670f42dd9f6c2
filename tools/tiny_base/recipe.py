"""How the embedded base is made: the numbers of its recipe."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BaseRecipe:
    """Sizes and steps of the tiny VAE, BLIP and Stable Diffusion; learning rates are AdamW's."""

    seed: int = 0
    size_px: int = 64
    pictures: int = 16000
    vae_steps: int = 2200
    vae_batch: int = 16
    vae_learning_rate: float = 1e-3
    decoder_steps: int = 7000  # the decoder alone, after the encoder is frozen
    decoder_learning_rate: float = 5e-4
    blip_steps: int = 2500
    blip_batch: int = 64
    blip_learning_rate: float = 8e-4
    unet_steps: int = 5000
    unet_batch: int = 32
    unet_learning_rate: float = 6e-4
    # Last, UNet and text encoder see every second batch larger and with dyed hair, for hires fix and for colours, and
    # foreign words in place of no caption, so that negative prompts do no harm. BLIP has the dyed ones from the start.
    varied_pictures: int = 6000
    varied_px: int = 96
    varied_steps: int = 800
    varied_learning_rate: float = 2e-4
    caption_dropout: float = 0.1
    min_snr_gamma: float = 5.0
    # Without it the noisiest step still shows a small picture's mean colour, and prompts are not needed for it.
    noise_offset: float = 0.1
    save_every: int = 250

    @property
    def varied_batch(self) -> int:
        """As many larger pictures as take the time of `unet_batch`."""
        return max(1, round(self.unet_batch * (self.size_px / self.varied_px) ** 2))

    def shortened(self, share: float) -> "BaseRecipe":
        """The same recipe with a share of its pictures and steps and a quarter of its batches, for a rehearsal."""
        values = dict(self.__dict__)
        steps = ("vae_steps", "decoder_steps", "blip_steps", "unet_steps", "varied_steps")
        for key in ("pictures", "varied_pictures", *steps):
            values[key] = max(4, round(values[key] * share))
        for key in ("vae_batch", "blip_batch", "unet_batch"):
            values[key] //= 4
        values["save_every"] = min(self.save_every, min(values[key] for key in steps) // 2)
        return BaseRecipe(**values)
