"""The tables of docs/benchmarks.md; everything else on the page stays as it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.claims import CLAIMS
from sdlora import records

BEGIN, END = "<!-- make bench: training -->", "<!-- end of training -->"
SHOWN = ("group", "name", "batch_size", "steps_per_s", "ratio", "first_step_s", "peak_mib", "note")
HEADS = ("option", "value", "batch", "steps/s", "speed against the baseline", "s to first step", "peak MiB", "")


def section(
    how: str,
    results: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Sequence[str]],
    told: Mapping[str, Mapping[str, str]],
) -> str:
    """Tables of all bases, the facts beside them, and the claims."""
    lines = ["Written by `make bench`. " + how, ""]
    lines += [
        "Speed 1 is the baseline of the same base; 0.5 takes twice its time. The baseline's own row is one more",
        "measurement of it, so how far it is from 1 is noise. Peak memory is that of the training after loading:",
        "RAM of a process of its own, or the GPU's.",
        "",
    ]
    for base, said in facts.items():
        lines += [f"### {base}", "", *(f"- {fact}" for fact in said), "", _row(HEADS), _row(["---"] * len(HEADS))]
        lines += [_row([str(row[key]) for key in SHOWN]) for row in results if row["base"] == base]
        lines.append("")
    lines += ["### Claims", "", "An empty cell was not measured.", ""]
    lines += [_row(["claimed", *told]), _row(["---"] * (len(told) + 1))]
    lines += [_row([claim, *(found.get(name, "") for found in told.values())]) for name, claim in CLAIMS.items()]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def write(path: Path, text: str) -> None:
    """Put the section between its markers, or at the end of the page."""
    page = path.read_text("utf-8") if path.exists() else "# Performance\n"
    block = f"{BEGIN}\n\n{text}\n\n{END}"
    if BEGIN in page and END in page:
        before, rest = page.split(BEGIN, 1)
        page = before + block + rest.split(END, 1)[1]
    else:
        page = f"{page.rstrip()}\n\n## Training\n\n{block}\n"
    records.write_text(path, page)
