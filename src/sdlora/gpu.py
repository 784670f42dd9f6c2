"""What the machine's GPU can do, and which trainings it cannot have."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sdlora.config.params import Base
from sdlora.config.train import Train
from sdlora.errors import MissingError, ParamsError, ResourceError

GIB = 2**30
#: How to get a torch for a driver or a card that the package index's own no longer knows.
OLDER_BUILD = "make TORCH_INDEX=https://download.pytorch.org/whl/cu126 (or another of https://download.pytorch.org/whl)"
#: Files that the drivers of NVIDIA, of Windows' Linux and of AMD make.
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


@dataclass(frozen=True)
class Gpu:
    """A card that torch can use."""

    name: str
    memory: int  # bytes
    capability: tuple[int, int]
    bf16: bool  # in hardware; torch emulates it elsewhere, many times slower
    kernels: bool = True  # whether this build of torch has any for it


def found() -> Gpu | None:
    """The card that torch would use; None where it finds none. Imports torch."""
    import torch

    if not torch.cuda.is_available():
        return None
    about = torch.cuda.get_device_properties(0)
    return Gpu(
        about.name,
        about.total_memory,
        (about.major, about.minor),
        torch.cuda.is_bf16_supported(including_emulation=False),
        has_kernels((about.major, about.minor), torch.cuda.get_arch_list()),
    )


def has_kernels(capability: tuple[int, int], built_for: Iterable[str]) -> bool:
    """Whether a build of torch has machine code for a card, or code that its driver can translate.

    Args:
        capability: The card's.
        built_for: As `torch.cuda.get_arch_list` has it: `sm_86` runs on 8.6 to 8.9, `compute_90` on 9.0 and later;
            AMD's are `gfx…`, of which nothing is known here.
    """
    names = [name for name in built_for if "_" in name]
    for name in names:
        kind, _, number = name.partition("_")
        digits = number.rstrip("af")
        major, minor = int(digits[:-1]), int(digits[-1])
        if kind == "sm" and major == capability[0] and minor <= capability[1]:
            return True
        if kind == "compute" and (major, minor) <= capability:
            return True
    return not names


def is_likely() -> bool:
    """Whether a card's driver is there, without importing torch."""
    return any(Path(name).exists() for name in _DRIVERS)


def unused() -> str | None:
    """Why torch finds no GPU on a machine whose driver tells of one; None where it finds it, or where there is none."""
    driver = driver_version()
    if driver is None or found() is not None:
        return None
    import torch

    return _without(torch.version.cuda, driver)


def concerns(train: Train, base: Base) -> bool:
    """Whether it must be known which GPU there is before a training can be planned."""
    asks = train.precision(base.dtype) == "fp16" or not train.deterministic or train.compile != "none"
    return asks or is_likely()


def check(train: Train, base: Base, gpu: Gpu | None) -> None:
    """Refuse a training that this machine cannot have.

    Raises:
        MissingError: If it needs a GPU, or another one.
        ParamsError: If no GPU can have it.
    """
    if gpu is None:
        needs, why = "", unused()
        if train.precision(base.dtype) == "fp16":
            needs = "mixed_precision fp16 needs a GPU; on a CPU use a base with dtype: fp32 or bf16"
        elif not train.deterministic:
            needs = "deterministic: false needs a GPU; on a CPU every algorithm is deterministic: leave it out"
        elif train.compile != "none":
            needs = f"compile: {train.compile} needs a GPU; on a CPU a base's own layers are as fast: leave it out"
        if needs:
            raise MissingError(f"{needs} ({why})" if why else needs)
        return
    check_kernels(gpu)
    check_scaler(train, base)
    for dtype in (train.precision(base.dtype), _weights(train, base)):
        check_dtype(dtype, "train.mixed_precision: fp16, or a base with dtype: fp16", gpu)


def check_kernels(gpu: Gpu | None) -> None:
    """Refuse a card on which the installed torch can compute nothing.

    Raises:
        MissingError: Names the card, and builds of torch that know it.
    """
    if gpu is not None and not gpu.kernels:
        raise MissingError(
            f"the installed torch has no kernels for {gpu.name} (capability {_dotted(gpu)}): install an older "
            f"build, {OLDER_BUILD}, or hide the card: CUDA_VISIBLE_DEVICES="
        )


def check_dtype(dtype: str, instead: str, gpu: Gpu | None) -> None:
    """Refuse a card that has no kernels, or none of a type.

    Args:
        dtype: In which a job would compute.
        instead: The settings for one that the card has.
        gpu: The card, if there is one; a CPU has bf16.

    Raises:
        MissingError: Names the card.
    """
    check_kernels(gpu)
    if dtype == "bf16" and gpu is not None and not gpu.bf16:
        raise MissingError(
            f"{gpu.name} (capability {_dotted(gpu)}) has no bf16: it would be emulated, many times slower; "
            f"set {instead}"
        )


def check_film(dtype: str, gpu: Gpu | None) -> None:
    """Refuse a film that this machine cannot make.

    Args:
        dtype: `animate.dtype`.
        gpu: The card, if there is one.

    Raises:
        MissingError: If it needs a GPU, or another one.
    """
    if gpu is None and dtype == "fp16":
        raise MissingError("animate.dtype is fp16, which needs a GPU; on a CPU use fp32 or bf16")
    check_dtype(dtype, "animate.dtype: fp16", gpu)


def _weights(train: Train, base: Base) -> str:
    """Type of the frozen weights, which follows the precision where both are half types."""
    precision = train.precision(base.dtype)
    return base.dtype if precision == "no" or base.dtype == "fp32" else precision


def check_scaler(train: Train, base: Base) -> None:
    """Refuse fp16 gradients that nothing scales.

    Raises:
        ParamsError: If the weights are fp16 and the precision is none.
    """
    if base.dtype == "fp16" and train.precision(base.dtype) == "no":
        raise ParamsError(
            "train.mixed_precision is no, but the base's dtype is fp16: small gradients would vanish without the "
            "scaler that mixed_precision: fp16 brings; leave mixed_precision out, or use a base with dtype: fp32"
        )


#: How the errors of a card that stopped working begin; newer calls have a class of their own, torch.AcceleratorError.
_LOST = ("CUDA error", "HIP error", "cuDNN error", "CUBLAS error", "NCCL error")
#: What stands in errors of memory that have no class of their own.
_FULL = (
    "DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory", "HIP error: out of memory",  # where another program has the whole card
)  # fmt: skip


def is_full(error: BaseException) -> bool:
    """Whether torch says that the memory of a card or of the machine is full."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _FULL)


def is_lost(error: BaseException) -> bool:
    """Whether torch says that a card stopped working."""
    import torch

    return isinstance(error, torch.AcceleratorError) or str(error).startswith(_LOST)


@contextmanager
def told_when_it_fails(
    advice: Callable[[], str], kept: Callable[[], str] = lambda: "what was made before is kept: start again"
) -> Iterator[None]:
    """Turn torch's errors of full memory and of a card that is lost into a sentence.

    Args:
        advice: Says what would make it fit.
        kept: Says what was made before and is safe.

    Raises:
        ResourceError: In their place.
    """
    try:
        yield
    except RuntimeError as error:
        said = (str(error).partition(". If reserved")[0].splitlines() or [""])[0]
        if is_full(error):
            place = "machine" if "CPUAllocator" in said else "GPU"
            raise ResourceError(f"the {place}'s memory is full ({said}); {advice()}") from error
        if is_lost(error):
            raise ResourceError(
                f"the GPU failed ({said}): it may be lost, too hot or reset, which `nvidia-smi` and `dmesg` tell; "
                f"{kept()}"
            ) from error
        raise


def _dotted(gpu: Gpu) -> str:
    return f"{gpu.capability[0]}.{gpu.capability[1]}"


def advice(gpu: Gpu | None, built_for: str | None, driver: str | None) -> str:
    """What a card can do and which settings fit it, in a sentence or two.

    Args:
        gpu: The card that torch finds.
        built_for: The version of CUDA that torch was built for; None for a CPU build.
        driver: What NVIDIA's driver says of itself; None where there is none.
    """
    if gpu is None:
        return _without(built_for, driver)
    if not gpu.kernels:
        return f"{gpu.name}: this build of torch has no kernels for its capability {_dotted(gpu)}"
    half = "bf16" if gpu.bf16 else "fp16"
    size = gpu.memory / GIB
    if size < 11:
        fits = "SD 1.5 at 512 px with gradient_checkpointing"
    elif size < 15.5:  # cards of 16 GiB have more; predicted for SDXL at 1024 px in bf16: 12.7 GiB with headroom
        fits = "SD 1.5, SDXL with gradient_checkpointing"
    else:
        fits = "SD 1.5, SDXL (drawn one by one: sample: {hires: null, batch_size: 1})"
    return (
        f"{gpu.name}: {size:.1f} GiB, capability {_dotted(gpu)}, bf16 {'in hardware' if gpu.bf16 else 'only emulated'}"
        f"; use mixed_precision: {half}; {fits}: `sdlora preflight VERSION --device cuda` tells exactly"
    )


def _without(built_for: str | None, driver: str | None) -> str:
    if driver is None:
        return "none; bases train in fp32 or bf16 on the CPU, fp16 needs a GPU"
    if built_for is None:
        return f"a driver is there ({driver}), but torch is a CPU build: make TORCH_INDEX=... installs another"
    return (
        f"a driver is there ({driver}), but torch, built for CUDA {built_for}, cannot use it, and all runs on the CPU: "
        f"the driver is too old for that, or no card is visible (CUDA_VISIBLE_DEVICES); update the driver, or take an "
        f"older build: {OLDER_BUILD}"
    )


def driver_version() -> str | None:
    """What NVIDIA's kernel driver calls itself."""
    said = Path("/proc/driver/nvidia/version")
    if not said.is_file():
        return None
    words = said.read_text("utf-8").splitlines()[0].split()
    numbers = [word for word in words if word.replace(".", "").isdigit() and "." in word]
    return f"NVIDIA {numbers[0]}" if numbers else "NVIDIA"
