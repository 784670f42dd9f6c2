"""What kohya's trainer (`networks.lora`) or LyCORIS (`lycoris.kohya`) merge into a pipeline's weights."""

import sys

import torch
from common import base, checkout, stub, write_all
from diffusers import StableDiffusionPipeline

stub("torchvision", "torchvision.transforms")
sys.path.insert(0, str(checkout))
if (checkout / "networks").exists():
    import networks.lora as tool
else:
    import lycoris.kohya as tool
pipeline = StableDiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32, safety_checker=None)
parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
before = {
    f"{part}.{name}": value.detach().clone()
    for part, network in parts.items()
    for name, value in network.named_parameters()
    if name.endswith(".weight")
}


def restore():
    """The base as it was."""
    for part, network in parts.items():
        for name, value in network.named_parameters():
            if f"{part}.{name}" in before:
                value.data.copy_(before[f"{part}.{name}"])


def read(file):
    """The updates of one file."""
    restore()
    encoder = pipeline.text_encoder
    network, state = tool.create_network_from_weights(
        1.0, file, pipeline.vae, encoder, pipeline.unet, for_inference=True
    )
    with torch.no_grad():
        network.merge_to(encoder, pipeline.unet, state, torch.float32, torch.device("cpu"))
    updates = {}
    for part, module in parts.items():
        for name, value in module.named_parameters():
            key = f"{part}.{name}"
            if key in before and not torch.equal(value, before[key]):
                updates[key.removesuffix(".weight")] = value.detach().double() - before[key].double()
    return updates


write_all(read)
