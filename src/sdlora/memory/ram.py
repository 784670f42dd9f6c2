"""What a training takes of a machine's memory, for a cluster that must know before it chooses a node."""

import torch

from sdlora import choices
from sdlora.config.params import Params
from sdlora.memory.meter import size_of
from sdlora.memory.prediction import demand_of_version, predict
from sdlora.models.family import quieten

MIB = 2**20
#: For Python, torch and the other libraries, with CUDA's own: estimates, on the safe side.
LIBRARIES_MIB = {"cpu": 2048, "cuda": 4096}


def training_mib(params: Params, name: str) -> int:
    """RAM of a version's training in MiB, rounded up to 100, with a tenth for what no tensor holds.

    With a CPU build of torch it is the worst moment of the training. With CUDA it is what passes through RAM on the way
    to the card: each network's weights, twice, as a file and as tensors. Every process of several takes as much.

    Raises:
        Unpredictable: If it trains in RAM, and a step cannot be taken on tensors without numbers.
    """
    quieten()
    version = params.versions[name]
    train, base = version.train.of_one_process, params.bases[version.base]
    device = "cpu" if torch.version.cuda is None else "cuda"
    if device == "cpu":
        phases = predict(train, base, demand_of_version(version, base), torch.device("cpu"))
        needed = max(phase.total for phase in phases)
    else:
        model = choices.pick(choices.FAMILIES, base.family).outline(base, torch.device("cpu"))
        needed = 2 * sum(size_of(part.parameters()) for part in model.parts())
    mib = train.processes * (LIBRARIES_MIB[device] + 1.1 * needed / MIB)
    return -(-round(mib) // 100) * 100
