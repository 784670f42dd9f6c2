"""Load a base onto a card that is not there and print the RAM it took: `python tests/measure_loading.py <json>`.

Not a test: `tests/models/test_to_a_card.py` starts it. torch's meta device stands for the card: a tensor that is
sent there is converted and read in RAM, as a copy to a card does it, and then takes nothing.
"""

import json
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdlora.config.params import Base
from sdlora.models import load_model

CARD = "meta"
_to = Tensor.to


def sent(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
    """`Tensor.to`, which reads what goes to the card."""
    words = [str(word) for word in (*args, options.get("device"))]
    if tensor.device.type == "cpu" and CARD in words:
        kinds = [word for word in (*args, options.get("dtype")) if isinstance(word, torch.dtype)]
        _to(tensor, *kinds[:1]).flatten()[::512].sum()
    return _to(tensor, *args, **options)


def taken() -> dict[str, int]:
    """What this process has in RAM, bytes: of its own, and pages of files, which the system can take back."""
    rows = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: 1024 * int(rows[row].split()[0]) for name, row in (("own", "RssAnon"), ("files", "RssFile"))}


def loaded(base: Base) -> dict[str, int]:
    """The most that was taken at a time while a base was loaded, beyond what was taken before."""
    before, most, done = taken(), taken(), threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            most.update({name: max(most[name], size) for name, size in taken().items()})

    watching = threading.Thread(target=watch)
    watching.start()
    model = load_model(base, CARD)
    done.set()
    watching.join()
    kinds = {(tensor.device.type, tensor.dtype) for part in model.parts() for tensor in part.parameters()}
    assert kinds == {(CARD, model.dtype)}
    sizes = [sum(p.numel() * p.itemsize for p in part.parameters()) for part in model.parts()]
    return {**{name: most[name] - before[name] for name in most}, "all": sum(sizes), "largest": max(sizes)}


def main() -> None:
    import diffusers.pipelines.pipeline_utils as pipelines  # after sdlora, which says what it may import

    bases = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    pipelines.SUPPORTED_DEVICE_MAP.append(CARD)
    Tensor.to = sent  # type: ignore[method-assign,assignment]
    load_model(Base(**bases[0]), CARD)  # libraries load
    print(json.dumps([loaded(Base(**base)) for base in bases]))


if __name__ == "__main__":
    main()
