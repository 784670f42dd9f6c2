"""Names of the files in a checkpoint's folder: those that stages read, and those that are published for other tools."""

import re
from pathlib import Path

ABOUT = "about.json"  # what the run found out, beside the checkpoints
FILE_NAME = "pytorch_lora_weights.safetensors"  # diffusers' own
AVERAGE = "ema"  # subfolder with the averaged weights
EMBEDDINGS = "embeddings.safetensors"  # learnt embeddings of the trigger

#: Endings that say which tools read a file.
FOR_A1111 = "-comfyui-a1111"
FOR_LYCORIS = "-lycoris"  # DoRA as kohya's trainer with LyCORIS reads it
FOR_DIFFUSERS = "-diffusers"  # a copy of another type; the file of FILE_NAME is fp32
FOR_EMBEDDINGS = "embeddings"  # subfolder, called as in A1111 and ComfyUI


def file_in(checkpoint: Path, average: bool) -> Path:
    """diffusers' file in a checkpoint's folder: the LoRA as it was trained, or its average."""
    return checkpoint / AVERAGE / FILE_NAME if average else checkpoint / FILE_NAME


def word_of(trigger: str) -> str:
    """The trigger as one word of letters, digits and dashes: 'pixel art avatar' -> 'pixel-art-avatar'."""
    return re.sub(r"[^a-z0-9]+", "-", trigger.lower()).strip("-")


def stem_of(version: str, folder: str, kind: tuple[str, ...] = ()) -> str:
    """What a checkpoint's files are called: ('v8', 'step-000600', ('ema',)) -> 'v8-step000600-ema'."""
    return "-".join([version, folder.replace("-", ""), *kind])
