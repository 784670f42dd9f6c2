"""What the set that is trained on is written as."""

from pathlib import Path

import pytest
from PIL import Image
from power_cut import synced_inodes
from small_set import captain, make_set

from sdlora.stages.flip.flip import flip_dataset


def test_all_files_are_on_the_disk_before_their_record_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that outlasts a power cut would otherwise speak for pictures that do not."""
    transparent = captain(1)
    transparent.putalpha(Image.new("L", transparent.size, 200))
    synced = synced_inodes(monkeypatch)
    folder = make_set(tmp_path, {"a.png": transparent, "b.png": transparent.rotate(5)}, masks="alpha", encode=False)
    fitted = [*folder.glob("pictures/**/*.png")]
    files = flip_dataset(folder, True, True, None, ("folders", "captain"))
    assert len(fitted) == 4 and {path.name for path in files} >= {"metadata.jsonl"} and len(files) == 1 + 8 + 8
    assert {path for path in (*fitted, *files) if path.stat().st_ino not in synced} == set()
