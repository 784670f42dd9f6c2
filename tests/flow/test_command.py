"""What Snakemake is called with, before it does anything."""

import os

import pytest

from sdlora.errors import DataError
from sdlora.flow.command import check_options, share_cores


@pytest.mark.parametrize("word", ["--touch", "--tou", "--to", "-t", "-nt", "-tF"])
def test_touch_is_refused_however_it_is_written(word: str) -> None:
    with pytest.raises(DataError, match="sdlora accept VERSION"):
        check_options(["--cores", "1", word, "all"])


@pytest.mark.parametrize("word", ["--target-jobs", "--trust-io-cache", "--t", "-n", "-np", "touch", "results/t", "-j4"])
def test_other_words_are_not_taken_for_it(word: str) -> None:
    check_options(["--cores", "1", word])


def test_threads_of_scripts_sleep_while_they_wait_unless_somebody_says_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
