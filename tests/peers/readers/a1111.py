"""A1111's own way from a LoRA file to the update of each weight; its web page is stubbed."""

import sys
import tempfile
import types

import torch
from common import Anything, checkout, ldm_names, stub, weights, write_all
from safetensors.torch import load_file

stub(
    "gradio", "lora_patches", "lora_logger", "modules.textual_inversion", "modules.models", "modules.models.sd3",
    "modules.textual_inversion.textual_inversion", "modules.models.sd3.mmdit", "modules.sd_models_types",
)  # fmt: skip
package = types.ModuleType("modules")
for name in ("shared", "devices", "sd_models", "errors", "scripts", "sd_hijack", "cache", "hashes"):
    module = types.ModuleType(f"modules.{name}")
    setattr(package, name, module)
    sys.modules[f"modules.{name}"] = module
package.__path__ = []
sys.modules["modules"] = package
sys.modules["lora_logger"].logger = Anything()


class QkvLinear(torch.nn.Linear):
    """A1111 asks whether a module is SD 3's."""


sys.modules["modules.models.sd3.mmdit"].QkvLinear = QkvLinear
sys.modules["modules.models"].sd3 = sys.modules["modules.models.sd3"]
sys.modules["modules.models.sd3"].mmdit = sys.modules["modules.models.sd3.mmdit"]
package.models = sys.modules["modules.models"]
package.textual_inversion = sys.modules["modules.textual_inversion"]
sys.modules["modules.textual_inversion"].textual_inversion = sys.modules["modules.textual_inversion.textual_inversion"]
package.sd_models.read_state_dict = lambda file: load_file(file)
package.devices.device, package.devices.dtype, package.devices.cpu = (torch.device("cpu"), torch.float32, "cpu")
package.shared.opts = Anything()
nowhere = tempfile.mkdtemp()  # its own folders of LoRAs, which it lists when it is imported
package.shared.cmd_opts = types.SimpleNamespace(lora_dir=nowhere, lyco_dir_backcompat=nowhere)
package.shared.walk_files = lambda *args, **kwargs: []
package.shared.sd_model = types.SimpleNamespace(is_sdxl=False, is_sd1=True, is_sd2=False)
sys.path.insert(0, str(checkout / "extensions-builtin/Lora"))
import networks  # noqa: E402

known = weights()


def module_of(name):
    """A layer with the base's weight."""
    weight = known[f"{name}.weight"]
    if weight.dim() == 4:
        out, inside, height, width = weight.shape
        layer = torch.nn.Conv2d(inside, out, (height, width), padding=height // 2, bias=False)
    else:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(weight.double(), requires_grad=False)
    return layer


layers, names = {}, {}
for ours, theirs in ldm_names().items():
    if known[f"unet.{ours}.weight"].dim() in (2, 4):
        key = f"diffusion_model_{theirs.replace('.', '_')}"
        layers[key], names[key] = module_of(f"unet.{ours}"), f"unet.{ours}"
for name, value in known.items():
    if name.startswith("text_encoder.") and name.endswith(".weight") and value.dim() == 2 and ".layers." in name:
        ours = name.removesuffix(".weight")
        key = "transformer_" + ours.removeprefix("text_encoder.").replace(".", "_")
        layers[key], names[key] = module_of(ours), ours
package.shared.sd_model.network_layer_mapping = layers


def read(file):
    """The updates of one file."""
    disk = types.SimpleNamespace(filename=file)
    network = networks.load_network("case", disk)
    network.te_multiplier = network.unet_multiplier = 1.0
    network.dyn_dim = None
    updates = {}
    for key, module in network.modules.items():
        with torch.no_grad():
            updates[names[key]], _ = module.calc_updown(layers[key].weight)
    return updates


write_all(read)
