"""What Snakemake is called with, before it does anything; and how the command `sdlora` ends."""

import os
import sys

import pytest

from sdlora import cli
from sdlora.errors import DataError
from sdlora.flow.command import check_options


@pytest.mark.parametrize("word", ["--touch", "--tou", "--to", "-t", "-nt", "-tF"])
def test_touch_is_refused_however_it_is_written(word: str) -> None:
    with pytest.raises(DataError, match="sdlora accept VERSION"):
        check_options(["--cores", "1", word, "all"])


@pytest.mark.parametrize("word", ["--target-jobs", "--trust-io-cache", "--t", "-n", "-np", "touch", "results/t", "-j4"])
def test_other_words_are_not_taken_for_it(word: str) -> None:
    check_options(["--cores", "1", word])


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_docs", interrupted)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["docs"])
    assert stopped.value.code == 130 and capsys.readouterr().err.split() == ["stopped"]


def test_who_reads_may_stop_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `sdlora docs | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit) as ended:
            cli.main(["docs"])
        assert ended.value.code == 141, "nobody may take it for finished"
