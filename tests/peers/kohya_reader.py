"""What a file with kohya's names adds to each weight, in numpy: the formulas of LyCORIS' paper (arXiv 2309.14859).

Written for the tests and used by nothing else, so that it shares no mistake with the code that writes the files.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
from safetensors import safe_open

Parts = dict[str, np.ndarray]


def read(file: Path) -> dict[str, Parts]:
    """The tensors of each module, float64."""
    modules: dict[str, Parts] = defaultdict(dict)
    with safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            module, _, part = name.partition(".")
            modules[module][part] = opened.get_tensor(name).double().numpy()
    return modules


def _flat(matrix: np.ndarray) -> np.ndarray:
    return matrix.reshape(len(matrix), -1)


def _factor(parts: Parts, name: str) -> np.ndarray:
    """A factor of LoKr, whole or of two matrices."""
    return parts[name] if name in parts else parts[f"{name}_a"] @ parts[f"{name}_b"]


def _scale(parts: Parts, *names: str) -> float:
    """alpha / rank; 1 where no factor has a rank."""
    ranks = [parts[name].shape[0] for name in names if name in parts]
    return float(parts["alpha"]) / ranks[0] if ranks else 1.0


def update(parts: Parts, weight: np.ndarray) -> np.ndarray:
    """What a module's tensors add to its weight."""
    if "diff" in parts:
        return parts["diff"]
    if "hada_w1_a" in parts:
        product = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
        return product.reshape(weight.shape) * _scale(parts, "hada_w1_b")
    if any(name.startswith("lokr_") for name in parts):
        first, second = _factor(parts, "lokr_w1"), _factor(parts, "lokr_w2")
        whole = np.kron(first, _flat(second)) if second.ndim == 2 else np.stack(
            [np.kron(first, second[..., y, x]) for y in range(second.shape[2]) for x in range(second.shape[3])], -1
        )  # fmt: skip
        return whole.reshape(weight.shape) * _scale(parts, "lokr_w2_b", "lokr_w1_b")
    up, down = parts["lora_up.weight"], parts["lora_down.weight"]
    added = (_flat(up) @ _flat(down)).reshape(weight.shape) * _scale(parts, "lora_down.weight")
    if "dora_scale" not in parts:
        return added
    moved = weight + added
    norms = np.sqrt((_flat(moved) ** 2).sum(1)).reshape(-1, *[1] * (weight.ndim - 1))
    return moved * parts["dora_scale"].reshape(norms.shape) / norms - weight
