"""Every menu: name -> "module:attribute". Importing this never imports torch."""

from importlib import import_module
from typing import Any

from sdlora.errors import ParamsError, suggest

OPTIMIZERS = {
    "adamw": "sdlora.train.optimizers:adamw",
    "adamw8bit": "sdlora.train.optimizers:adamw8bit",
    "prodigy": "sdlora.train.optimizers:prodigy",
    "lion": "sdlora.train.optimizers:lion",
    "adafactor": "sdlora.train.optimizers:adafactor",
    "schedulefree_adamw": "sdlora.train.optimizers:schedulefree_adamw",
}
LR_SCHEDULES = {
    "constant": "sdlora.train.lr_schedules:from_diffusers",
    "constant_with_warmup": "sdlora.train.lr_schedules:from_diffusers",
    "linear": "sdlora.train.lr_schedules:from_diffusers",
    "cosine": "sdlora.train.lr_schedules:from_diffusers",
    "cosine_with_restarts": "sdlora.train.lr_schedules:from_diffusers",
    "polynomial": "sdlora.train.lr_schedules:from_diffusers",
    "staged": "sdlora.train.lr_schedules:staged",
}
LORA_TYPES = {
    "lora": "sdlora.train.lora:lora_config",
    "dora": "sdlora.train.lora:lora_config",
    "loha": "sdlora.train.lora:loha_config",
    "lokr": "sdlora.train.lora:lokr_config",
}
TARGETS = {
    "attention": "sdlora.train.lora:ATTENTION",
    "attention_feed_forward": "sdlora.train.lora:ATTENTION_FEED_FORWARD",
    "all": "sdlora.train.lora:ALL_LAYERS",
}
LOSSES = {
    "mse": "sdlora.train.losses:mse",
    "huber": "sdlora.train.losses:huber",
}
WEIGHTINGS = {
    "none": "sdlora.train.losses:unweighted",
    "min_snr": "sdlora.train.losses:min_snr",
    "soft_min_snr": "sdlora.train.losses:soft_min_snr",
    "debiased": "sdlora.train.losses:debiased",
}
NOISES = {
    "offset": "sdlora.train.noise:offset",
    "pyramid": "sdlora.train.noise:pyramid",
}
SCHEDULERS = {
    "ddim": "diffusers:DDIMScheduler",
    "euler": "diffusers:EulerDiscreteScheduler",
    "dpmpp_2m": "diffusers:DPMSolverMultistepScheduler",
    "pndm": "diffusers:PNDMScheduler",
}
METRICS = {
    "psnr_db": "sdlora.evaluate.psnr:psnr_db",
    "ssim": "sdlora.evaluate.ssim:ssim",
    "effnet_lite0_distance": "sdlora.evaluate.effnet:effnet_lite0_distance",
}
LOWER_IS_BETTER = {"effnet_lite0_distance"}  # of METRICS; of the others, higher is better
SOURCES = {
    "folder": "sdlora.scrape.folder:find",
    "bing": "sdlora.scrape.bing:find",
    "selenium": "sdlora.scrape.selenium:find",
    "hub": "sdlora.scrape.hub:find",
}
ENGINES = {
    "bing": "sdlora.scrape.engines.bing:Bing",
}
FAMILIES = {
    "sd": "sdlora.adapters.sd:StableDiffusion",
    "sdxl": "sdlora.adapters.sdxl:StableDiffusionXL",
}


def pick(menu: dict[str, str], name: str) -> Any:
    """The object a menu's entry names.

    Raises:
        ParamsError: If the menu has no such entry.
    """
    if name not in menu:
        raise ParamsError(f"{name!r} is not on the menu{suggest(name, menu)}")
    module, attribute = menu[name].split(":")
    return getattr(import_module(module), attribute)
