"""What `sdlora accept` looks at, and that no answer is no; what it writes is tested on a whole project."""

from pathlib import Path

import pytest
from small_set import edited

from sdlora.errors import DataError
from sdlora.flow import accept


def test_a_version_s_further_trainings_are_accepted_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = edited(tmp_path, ("rank: 2", "rank: 2, seeds: 3"))
    monkeypatch.setattr(accept, "_change", lambda job, hashes: iter([job]))
    found = accept.changes(params, accept.with_trainings(params, ["a"]))
    assert {job.name for job in found if job.stage == "train"} == {"a", "a-seed43", "a-seed44"}
    assert accept.with_trainings(params, ["a-seed43", "b"]) == ["a-seed43", "b"]


def test_where_nobody_can_answer_nothing_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    edited(tmp_path)

    class Found:
        text = "train a (3 files): code was 1 and is 2"

    def nobody(question: str) -> str:
        raise EOFError

    monkeypatch.setattr(accept.lock, "acquire", lambda words: True)
    monkeypatch.setattr(accept, "changes", lambda params, versions: [Found()])
    monkeypatch.setattr("builtins.input", nobody)
    with pytest.raises(DataError, match="nothing was changed"):
        accept.run(["a"], sure=False)
