"""The pipeline that people who train Stable Diffusion LoRAs trust."""

__version__ = "0.1.0"
