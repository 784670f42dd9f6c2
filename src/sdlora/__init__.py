"""The pipeline that people who train Stable Diffusion LoRAs trust."""

import logging
import sys

if sys.platform == "win32":
    sys.exit("error: sdlora runs on Linux and macOS (it needs fcntl and tee); on Windows, use WSL 2")

# bitsandbytes, imported by peft, fetches a compiled kernel from a hub and loads it where the package `kernels` is
# installed: code that no lock names. We train no 4-bit weights, so for it that package is not there.
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
# Where it is installed, peft and diffusers import bitsandbytes and with it a compiler: 2.4 of the 8.3 s of computing
# that a stage takes to start. Only the 8-bit optimizers want it, and let it in.
sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# diffusers imports image processors under names that want torchvision; those for Pillow come instead, as is meant
logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)

__version__ = "0.1.0"
