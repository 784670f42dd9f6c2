"""What Snakemake is called with, before it does anything."""

import pytest

from sdlora.errors import DataError
from sdlora.flow.command import check_options


@pytest.mark.parametrize("word", ["--touch", "--tou", "--to", "-t", "-nt", "-tF"])
def test_touch_is_refused_however_it_is_written(word: str) -> None:
    with pytest.raises(DataError, match="sdlora accept VERSION"):
        check_options(["--cores", "1", word, "all"])


@pytest.mark.parametrize("word", ["--target-jobs", "--trust-io-cache", "--t", "-n", "-np", "touch", "results/t", "-j4"])
def test_other_words_are_not_taken_for_it(word: str) -> None:
    check_options(["--cores", "1", word])
