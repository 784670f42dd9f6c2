"""What jobs take of a machine's RAM: for a cluster that must know before it chooses a node, and beside a card."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from sdlora import choices
from sdlora.config.params import Base, Params, Version
from sdlora.flow import asking, plan
from sdlora.memory.demand import Demand, demand_of_version
from sdlora.memory.prediction import Phase, draw_phase, encode_phase, predict, state_bytes
from sdlora.models.family import KINDS, first_loaded
from sdlora.models.loading import quieten, trained_base
from sdlora.tensors import DTYPES

MIB = 2**20
#: For Python, torch and the other libraries, with CUDA's own: estimates, on the safe side.
LIBRARIES_MIB = {"cpu": 2048, "cuda": 4096}
CARD = torch.device("cuda")


def training_mib(params: Params, name: str) -> int:
    """RAM of a version's training in MiB, rounded up to 100, with a tenth for what no tensor holds.

    With a CPU build of torch it is the worst moment of the training; with CUDA, what `beside_a_card` says. Every
    process of several takes as much.

    Raises:
        Unpredictable: If it trains in RAM, and a step cannot be taken on tensors without numbers.
    """
    quieten()
    version = params.versions[name]
    train, base, needed = version.train.of_one_process, params.bases[version.base], demand(params, name)
    if torch.version.cuda is None:
        phases = predict(train, base, needed, torch.device("cpu"))
        return _asked("cpu", max(phase.total for phase in phases), train.processes)
    return beside_a_card(version, base, needed.in_ram)["train"]


def encoding_mib(params: Params, name: str) -> int:
    """RAM of encoding a version's pictures in MiB, as `training_mib` counts it.

    Raises:
        Unpredictable: If it encodes in RAM, and that needs numbers that tensors without them do not have.
    """
    return _mib(params, name, "encode", lambda version, base: encode_phase(version, base, torch.device("cpu")))


def demand(params: Params, name: str) -> Demand:
    """A version's demand, with the captions and pictures of its set as far as that is there."""
    version = params.versions[name]
    folder = plan.set_folder(version.dataset, plan.fit_name(params, name))
    base, captions, sides = params.bases[version.base], asking.captions_in(folder), asking.sides_in(folder)
    return demand_of_version(version, base, captions, sides)


def drawing_mib(params: Params, name: str) -> int:
    """RAM of the jobs that draw a version's pictures in MiB, as `training_mib` counts it; nothing that measures them.

    Raises:
        Unpredictable: If it draws in RAM, and that needs numbers that tensors without them do not have.
    """

    def in_ram(version: Version, base: Base) -> Phase:
        return draw_phase(version.sample, version.fit.size_px or base.size_px, base, torch.device("cpu"))

    return _mib(params, name, "draw", in_ram)


def _mib(params: Params, name: str, stage: str, in_ram: Callable[[Version, Base], Phase]) -> int:
    """RAM of a stage of a version: the phase that computes in it, or what is there beside a card."""
    quieten()
    version = params.versions[name]
    base = params.bases[version.base]
    if torch.version.cuda is None:
        return _asked("cpu", in_ram(version, base).total)
    return beside_a_card(version, base)[stage]


def beside_a_card(version: Version, base: Base, kept: int = 0) -> dict[str, int]:
    """RAM of the stages that load a base, in MiB, where a card computes and a training keeps so many bytes in RAM.

    A network goes to the card one tensor after the other (`loading.from_pretrained`), so that the pages of its file
    are what it takes, and are gone when the next one is read. Files of another type have other pages than are counted
    here, but the system takes those back where memory is short. A single-file checkpoint holds all networks, and they
    are converted in RAM. Later, a checkpoint is in RAM while it is written.
    """
    train = version.train.of_one_process
    model = choices.pick(choices.FAMILIES, base.family).outline(base, CARD)
    networks = {name: part for name, part in model.pipeline.components.items() if isinstance(part, nn.Module)}
    numbers = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}

    def passing(kinds: Sequence[str], dtype: str) -> int:
        if base.model.endswith(".safetensors"):
            return 2 * sum(numbers.values()) * DTYPES[dtype].itemsize
        return max(numbers.get(name, 0) for name in model.names_of(kinds)) * DTYPES[dtype].itemsize

    trained = trained_base(base, train, CARD).dtype
    loading = [passing(kinds, trained) for kinds in (first_loaded(base, train), ("denoiser",))]
    return {
        "encode": _asked("cuda", passing(("vae",), version.encode.dtype)),
        "train": _asked("cuda", max(*loading, state_bytes(model, train)) + kept, version.train.processes),
        "draw": _asked("cuda", passing(KINDS, base.dtype)),
    }


def _asked(device: str, needed: int, processes: int = 1) -> int:
    mib = processes * (LIBRARIES_MIB[device] + 1.1 * needed / MIB)
    return -(-round(mib) // 100) * 100
