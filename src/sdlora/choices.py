"""Every menu: name -> "module:attribute". Importing this never imports torch."""

from importlib import import_module
from typing import Any

from sdlora.errors import ParamsError, suggest

OPTIMIZERS = {
    "adamw": "sdlora.train.optimizers:adamw",
    "adamw8bit": "sdlora.train.optimizers:adamw8bit",
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
SCHEDULERS = {
    "ddim": "diffusers:DDIMScheduler",
    "euler": "diffusers:EulerDiscreteScheduler",
    "dpmpp_2m": "diffusers:DPMSolverMultistepScheduler",
    "pndm": "diffusers:PNDMScheduler",
}
METRICS = {
    "psnr_db": "sdlora.evaluate.psnr:psnr_db",
    "ssim": "sdlora.evaluate.ssim:ssim",
}
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
