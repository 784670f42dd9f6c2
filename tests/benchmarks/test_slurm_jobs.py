"""`python -m benchmarks.slurm_jobs`: what each of its rows makes is ten versions that differ in rank alone."""

import sys
from pathlib import Path

from helpers import ROOT

from sdlora.config.load import load

sys.path.insert(0, str(ROOT))

from benchmarks import slurm_jobs


def test_ten_small_versions(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(slurm_jobs.settings(), "utf-8")
    params = load(tmp_path / "params.yaml")
    assert [params.versions[name].train.rank for name in params.run] == [*range(2, 12)] and len(params.versions) == 10
    assert len({version.model_copy(update={"train": None}) for version in params.versions.values()}) == 1
