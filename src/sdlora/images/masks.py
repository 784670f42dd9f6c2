"""A user's masks: white is learnt, black is not, grey is a weight in between."""

from os.path import normpath
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sdlora.config.dataset import ALPHA
from sdlora.errors import DataError
from sdlora.images.pictures import open_picture, open_png, to_rgb

FOLDER = "pictures/masks"  # of the fitted masks, among the fitted pictures
TRAIN_FOLDER = "train-masks"  # in both orientations, beside train/, whose layout has no place for them
SUFFIXES = (".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jpg", ".jpeg")


def find(source: str | None, row: dict[str, object], namesakes: int = 0) -> Path | None:
    """The mask file of a picture: in the folder, under the picture's own path or its id, with any suffix.

    Args:
        source: `alpha`, a folder, or None.
        row: The picture's row of the manifest.
        namesakes: Other pictures of the same path but for the suffix, as of another source: the id tells them apart.

    Returns:
        The file, or None where masks do not lie in a folder.

    Raises:
        DataError: If the folder has none for this picture, or several.
    """
    if source is None or source == ALPHA:
        return None
    stems = [Path(source) / Path(str(row["name"])).with_suffix(""), Path(source) / str(row["id"])]
    stems = [stem for stem in stems if Path(normpath(stem)).is_relative_to(normpath(source))]  # a name may be a URL
    if namesakes:
        stems = stems[-1:]
    found = [stem.with_name(stem.name + suffix) for stem in stems for suffix in SUFFIXES]
    found = [path for path in found if path.is_file()]
    if namesakes and not found:
        raise DataError(
            f"{row['name']}: {namesakes + 1} pictures are called so, and a mask of that name would be for one of them: "
            f"name the masks in {source!r} by the pictures' ids, this one {row['id']}"
        )
    if len(found) != 1:
        names = (
            " and ".join(map(str, found)) or f"none; looked for {stems[0] if stems else source}{{{','.join(SUFFIXES)}}}"
        )
        raise DataError(f"{row['name']}: a picture needs one mask in {source!r}, but there is {names}")
    return found[0]


def read(path: Path, size: tuple[int, int], name: str) -> Image.Image:
    """A mask from a file, upright, as `L`; what it shows through transparency is black.

    Raises:
        DataError: If it is no picture, is not of the picture's size, or is black all over.
    """
    mask = to_rgb(open_picture(path.read_bytes(), str(path)), "#000000").convert("L")
    if mask.size != size:
        raise DataError(
            f"{path}: the mask is {mask.width} x {mask.height} px, but its picture {name} is {size[0]} x {size[1]} px"
        )
    return _not_empty(mask, str(path))


def of_alpha(picture: Image.Image, name: str) -> Image.Image:
    """A picture's alpha channel, upright, as `L`.

    Raises:
        DataError: If it has none, or is transparent all over.
    """
    if not picture.has_transparency_data:
        raise DataError(
            f"{name}: masks: alpha needs an alpha channel, and this picture has none; save it with one "
            f"(opaque where it is to be learnt), or give a folder of masks"
        )
    return _not_empty(ImageOps.exif_transpose(picture).convert("RGBA").getchannel("A"), name)


def _not_empty(mask: Image.Image, name: str) -> Image.Image:
    if not np.asarray(mask).any():
        raise DataError(f"{name}: the mask is black all over, so nothing of its picture would be learnt")
    return mask


def read_fitted(path: Path) -> Image.Image:
    """A mask that `fit` or `flip` wrote."""
    with open_png(path) as mask:
        return mask.convert("L")


def coverage(box: tuple[int, int, int, int], size: tuple[int, int], shape: tuple[int, int]) -> NDArray[np.float32]:
    """How much of each latent cell a picture covers: the mask of its padding, by area.

    Args:
        box: (left, top, width, height) of the picture, px.
        size: (width, height) of the fitted picture, px.
        shape: (h, w) of the latents.

    Returns:
        (h, w) in [0, 1]; 0 where a cell is padding alone.
    """

    def along(start: int, length: int, whole: int, cells: int) -> NDArray[np.float64]:
        edges = np.arange(cells + 1) * (whole / cells)
        inside = np.minimum(edges[1:], start + length) - np.maximum(edges[:-1], start)
        share: NDArray[np.float64] = np.clip(inside, 0, None) / (whole / cells)
        return share

    left, top, width, height = box
    rows, columns = along(top, height, size[1], shape[0]), along(left, width, size[0], shape[1])
    return np.outer(rows, columns).astype(np.float32)


def at_latents(mask: Image.Image, shape: tuple[int, int]) -> NDArray[np.float32]:
    """A fitted mask at the latents' resolution (h, w), by area, in [0, 1]."""
    weights = np.asarray(mask, np.float64) / 255
    height, width = weights.shape
    blocks = weights.reshape(shape[0], height // shape[0], shape[1], width // shape[1])
    means: NDArray[np.float32] = blocks.mean(axis=(1, 3)).astype(np.float32)
    return means
