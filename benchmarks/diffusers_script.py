"""Time diffusers' own LoRA script, from a path the user gives, on the same model, data, batch and precision."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sdlora.config.params import Base
from sdlora.config.train import Train
from sdlora.errors import MissingError

_RUNNER = Path(__file__).with_name("without_torchvision.py").resolve()  # torchvision itself, where it is installed


def seconds_a_step(script: Path, base: Base, folder: Path, settings: Train, steps: int, threads: int) -> float:
    """Steady seconds a step: two runs that differ in their number of steps, so that the start cancels out.

    Args:
        script: `train_text_to_image_lora.py` or `train_text_to_image_lora_sdxl.py`.
        base: A diffusers folder.
        folder: The dataset; its `train/` is an image folder with metadata.
        settings: Batch size, rank and precision.
        steps: Further steps of the longer run.
        threads: OpenMP threads.

    Raises:
        MissingError: If the script fails, with its last lines; or if its start drowns its steps.
    """
    if not script.is_file():
        raise MissingError(f"--diffusers-script: there is no file {script}")
    short, long = (_run(script, base, folder, settings, 2 + extra, threads) for extra in (0, steps))
    if long <= short:
        raise MissingError(f"the script's start varies by more than {steps} steps take; raise --script-steps")
    return (long - short) / steps


def _run(script: Path, base: Base, folder: Path, settings: Train, steps: int, threads: int) -> float:
    with tempfile.TemporaryDirectory() as out:
        options = {
            "pretrained_model_name_or_path": Path(base.model).resolve(), "train_data_dir": (folder / "train").resolve(),
            "caption_column": "text", "resolution": base.size_px, "train_batch_size": settings.batch_size,
            "gradient_accumulation_steps": 1, "max_train_steps": steps, "checkpointing_steps": 10**6,
            "rank": settings.rank, "mixed_precision": settings.mixed_precision or "no", "seed": settings.seed,
            "learning_rate": settings.learning_rate, "lr_scheduler": "constant", "output_dir": out,
            "dataloader_num_workers": 0,
        }  # fmt: skip
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_DATASETS_CACHE": f"{out}/cache"}
        began = time.perf_counter()
        command = [sys.executable, str(_RUNNER), str(script.resolve()), *words]
        done = subprocess.run(command, env=environment, cwd=out, text=True, capture_output=True, check=False)
        seconds = time.perf_counter() - began
    if done.returncode:
        raise MissingError(f"{script} failed:\n{done.stderr[-1500:]}")
    return seconds
