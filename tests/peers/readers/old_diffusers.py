"""diffusers' own loader, of the version that is installed: every layer's update."""

from common import base, write_all
from diffusers import StableDiffusionPipeline


def update_of(module):
    """What the LoRA adds to a layer's weight."""
    (adapter,) = module.active_adapters
    if adapter not in module.lora_magnitude_vector:
        return module.get_delta_weight(adapter)
    before = module.get_base_layer().weight.detach().double().clone()
    module.merge()
    return module.get_base_layer().weight.detach().double() - before


def read(file):
    """The updates of one file."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    folder, _, name = file.rpartition("/")
    pipeline.load_lora_weights(folder, weight_name=name)
    return {
        f"{part}.{name}": update_of(module)
        for part in ("unet", "text_encoder")
        for name, module in getattr(pipeline, part).named_modules()
        if hasattr(module, "get_delta_weight")
    }


write_all(read)
