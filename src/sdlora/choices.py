"""Every menu: name -> "module:attribute". Importing this never imports torch."""

from importlib import import_module
from typing import Any

from sdlora.errors import ParamsError, suggest

OPTIMIZERS = {
    "adamw": "sdlora.stages.train.optimizers:adamw",
    "adamw8bit": "sdlora.stages.train.optimizers:adamw8bit",
    "prodigy": "sdlora.stages.train.optimizers:prodigy",
    "lion": "sdlora.stages.train.optimizers:lion",
    "adafactor": "sdlora.stages.train.optimizers:adafactor",
    "schedulefree_adamw": "sdlora.stages.train.optimizers:schedulefree_adamw",
}
LR_SCHEDULES = {
    "constant": "sdlora.stages.train.lr_schedules:from_diffusers",
    "constant_with_warmup": "sdlora.stages.train.lr_schedules:from_diffusers",
    "linear": "sdlora.stages.train.lr_schedules:from_diffusers",
    "cosine": "sdlora.stages.train.lr_schedules:from_diffusers",
    "cosine_with_restarts": "sdlora.stages.train.lr_schedules:from_diffusers",
    "polynomial": "sdlora.stages.train.lr_schedules:from_diffusers",
    "staged": "sdlora.stages.train.lr_schedules:staged",
}
LORA_TYPES = {
    "lora": "sdlora.lora.types:lora_config",
    "dora": "sdlora.lora.types:lora_config",
    "loha": "sdlora.lora.types:loha_config",
    "lokr": "sdlora.lora.types:lokr_config",
}
TARGETS = {
    "attention": "sdlora.lora.types:ATTENTION",
    "attention_feed_forward": "sdlora.lora.types:ATTENTION_FEED_FORWARD",
    "all": "sdlora.lora.types:ALL_LAYERS",
}
LOSSES = {
    "mse": "sdlora.stages.train.losses:mse",
    "huber": "sdlora.stages.train.losses:huber",
}
WEIGHTINGS = {
    "none": "sdlora.stages.train.losses:unweighted",
    "min_snr": "sdlora.stages.train.losses:min_snr",
    "soft_min_snr": "sdlora.stages.train.losses:soft_min_snr",
    "debiased": "sdlora.stages.train.losses:debiased",
}
NOISES = {
    "offset": "sdlora.stages.train.noise:offset",
    "pyramid": "sdlora.stages.train.noise:pyramid",
}
SCHEDULERS = {
    "ddim": "diffusers:DDIMScheduler",
    "euler": "diffusers:EulerDiscreteScheduler",
    "euler_a": "diffusers:EulerAncestralDiscreteScheduler",
    "dpmpp_2m": "diffusers:DPMSolverMultistepScheduler",
    "unipc": "diffusers:UniPCMultistepScheduler",
    "pndm": "diffusers:PNDMScheduler",
    "flow_euler": "diffusers:FlowMatchEulerDiscreteScheduler",
}
METRICS = {
    "psnr_db": "sdlora.stages.evaluate.psnr:PSNR_DB",
    "ssim": "sdlora.stages.evaluate.ssim:SSIM",
    "ms_ssim": "sdlora.stages.evaluate.ms_ssim:MS_SSIM",
    "effnet_lite0_distance": "sdlora.stages.evaluate.effnet:EFFNET_LITE0_DISTANCE",
    "effnet_lite0_diversity": "sdlora.stages.evaluate.diversity:EFFNET_LITE0_DIVERSITY",
    "effnet_lite0_drift": "sdlora.stages.evaluate.drift:EFFNET_LITE0_DRIFT",
    "validation_loss": "sdlora.stages.evaluate.validation_loss:VALIDATION_LOSS",
    "prompt_recall": "sdlora.stages.evaluate.prompt_recall:PROMPT_RECALL",
    "memorisation_ratio": "sdlora.stages.evaluate.memorisation:MEMORISATION_RATIO",
    "clip_t": "sdlora.stages.evaluate.clip_t:CLIP_T",
    "clip_i": "sdlora.stages.evaluate.clip_i:CLIP_I",
    "dinov2": "sdlora.stages.evaluate.dinov2:DINOV2",
    "cmmd": "sdlora.stages.evaluate.cmmd:CMMD",
}
SOURCES = {
    "folder": "sdlora.stages.scrape.folder:find",
    "bing": "sdlora.stages.scrape.bing:find",
    "selenium": "sdlora.stages.scrape.selenium:find",
    "hub": "sdlora.stages.scrape.hub:find",
}
CAPTIONERS = {
    "blip": "sdlora.stages.caption.blip:Blip",
    "none": "sdlora.stages.caption.nothing:Nothing",
}
ENGINES = {
    "bing": "sdlora.stages.scrape.engines.bing:Bing",
}
FAMILIES = {
    "sd": "sdlora.models.sd:StableDiffusion",
    "sdxl": "sdlora.models.sdxl:StableDiffusionXL",
    "sd3": "sdlora.models.sd3:StableDiffusion3",
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
