"""What the installed diffusers draws with a base, written to OUT/picture.npz: token ids and pixels.

Call: picture.py - BASE OUT PROMPT...
"""

import numpy as np
import torch
from common import base, files, out
from diffusers import StableDiffusionPipeline

torch.set_num_threads(1)
pipeline = StableDiffusionPipeline.from_pretrained(base)
pipeline.set_progress_bar_config(disable=True)
tokens = pipeline.tokenizer(files, padding="max_length", truncation=True, return_tensors="pt").input_ids
drawn = pipeline(files, num_inference_steps=6, height=64, width=64, generator=torch.Generator().manual_seed(3)).images
out.mkdir(parents=True, exist_ok=True)
np.savez(out / "picture.npz", tokens=tokens.numpy(), pixels=np.stack([np.asarray(picture) for picture in drawn]))
