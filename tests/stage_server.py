"""Runs stages' scripts in forks of one process that has imported everything: a job costs its work, not 6 s of imports.

    with serving(project.folder, scratch) as python:   # a command that behaves like `python script args`
        ...

Snakemake starts the scripts with `sys.executable`; `python.parent / "bin"` holds a `snakemake` in which that is the
client below. Nothing else differs: the same Snakefile, the same scripts, a process of its own for each job.
"""

import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# What scripts import late, or through a menu.
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
)  # fmt: skip
CLIENT = f"""#!{sys.executable} -ISE
import array, json, os, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect(%r)
words = json.dumps([os.getcwd(), sys.argv[1:]]).encode()
socket.send_fds(link, [len(words).to_bytes(4, "big")], [0, 1, 2])
link.sendall(words)
answer = link.makefile()
answer.readline()
sys.exit(int(answer.readline() or 1))
"""
SNAKEMAKE = f"""#!{sys.executable}
import sys
sys.executable = %r
from snakemake.cli import main
main()
"""


@contextmanager
def serving(project: Path, scratch: Path) -> Iterator[Path]:
    """Start the server for one project; gives the client's path.

    Args:
        project: Its `src` is what is imported.
        scratch: An empty folder; its path must be short, for a socket lies there.
    """
    address, client = scratch / "s", scratch / "python"
    client.write_text(CLIENT % str(address))
    snakemake = scratch / "bin/snakemake"
    snakemake.parent.mkdir()
    snakemake.write_text(SNAKEMAKE % str(client))
    client.chmod(0o755)
    snakemake.chmod(0o755)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{project / 'src'}{os.pathsep}{project}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    server = subprocess.Popen([sys.executable, __file__, str(address)], cwd=project, env=environment)
    try:
        limit = time.monotonic() + 120
        while not address.exists():
            if server.poll() is not None or time.monotonic() > limit:
                raise RuntimeError("the server of stages did not start")
            time.sleep(0.05)
        yield client
    finally:
        server.terminate()
        server.wait()


@dataclass(frozen=True)
class Job:
    """A script that runs in a fork of the server and that can be killed."""

    pid: int
    answer: IO[str]

    @classmethod
    def start(cls, python: Path, script: Path, *words: str, folder: Path, log: Path) -> "Job":
        """Run `script` with `words` in `folder`; what it says is appended to `log`."""
        link = socket.socket(socket.AF_UNIX)
        link.connect(str(python.with_name("s")))
        argv = json.dumps([str(folder), [str(script), *words]]).encode()
        with Path(os.devnull).open() as nothing, log.open("ab") as said:
            socket.send_fds(link, [len(argv).to_bytes(4, "big")], [nothing.fileno(), said.fileno(), said.fileno()])
        link.sendall(argv)
        answer = link.makefile()
        return cls(int(answer.readline()), answer)

    def kill(self) -> None:
        """`kill -9`; unlike a client's, it reaches the script itself."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code, 128 + n where signal n ended it."""
        return int(self.answer.readline())

    def ended(self) -> bool:
        """Whether it has come to an end."""
        return bool(select.select([self.answer], [], [], 0)[0])


def _serve(address: str) -> None:
    import importlib

    for name in (*PRELOADED, *(["tools.tiny_base.make"] if Path("tools").is_dir() else [])):  # copies have no tools
        importlib.import_module(name)
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline  # noqa: F401
    from transformers import BlipForConditionalGeneration, BlipProcessor, CLIPTextModel, CLIPTokenizer  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(16)
    Path(f"{address}.new").rename(address)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while True:
        link, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _answer(link)
        link.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _answer(link: socket.socket) -> None:
    """In a fork of its own: run the script in another fork, and say how it ended."""
    length, descriptors, _, _ = socket.recv_fds(link, 4, 3)
    words = b""
    while len(words) < int.from_bytes(length, "big"):
        words += link.recv(65536)
    child = os.fork()
    if child == 0:
        _run(*json.loads(words), descriptors)
    link.sendall(f"{child}\n".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    link.sendall(f"{code if code >= 0 else 128 - code}\n".encode())
    os._exit(0)


def _run(folder: str, argv: list[str], descriptors: list[int]) -> None:
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.chdir(folder)
    sys.argv = argv
    code = 1
    try:
        runpy.run_path(argv[0], run_name="__main__")
        code = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
