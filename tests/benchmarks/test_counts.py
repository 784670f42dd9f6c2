"""What `python -m benchmarks.counts` counts."""

import subprocess
import sys

import pytest
import torch
from benchmarks.counts import Operations, optimizer_counts, reads_of_losses, settings_of
from helpers import ROOT


def test_views_are_no_operations() -> None:
    with Operations() as operations:
        (torch.zeros(2, 3).T[0] + 1).view(-1)
    assert operations.count == 2


@pytest.mark.parametrize(("name", "waits"), [("adamw", 0), ("adamw8bit", 0), ("prodigy", 1)])
def test_an_optimizer_is_counted_in_its_second_step(name: str, waits: int) -> None:
    few, many = (optimizer_counts(settings_of(2, name), [torch.Size((2, 40))] * count) for count in (2, 6))
    assert few[1] == many[1] == waits
    assert many[0] == few[0] if name == "adamw" else many[0] >= few[0] + 4


def test_losses_are_read_once_in_twenty_steps() -> None:
    assert reads_of_losses() == 0.05


@pytest.mark.workflow
def test_a_benchmark_may_import_diffusers_first() -> None:
    """diffusers asks when it is imported whether bitsandbytes is there, and would import what is hidden later."""
    code = "import sys, benchmarks; assert sys.modules['bitsandbytes'] is None"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
