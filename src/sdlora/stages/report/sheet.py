"""One picture that shows what a version learnt: references, the base, the best step."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

CELL_PX, LABEL_PX, GAP_PX = 96, 90, 4


def contact_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """A labelled row of pictures each; all are scaled to 96 px."""
    columns = max(len(pictures) for _, pictures in rows)
    size = (LABEL_PX + columns * (CELL_PX + GAP_PX), len(rows) * (CELL_PX + GAP_PX))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for row, (label, pictures) in enumerate(rows):
        top = row * (CELL_PX + GAP_PX)
        pen.text((4, top + CELL_PX / 2), label, fill="black", font=font, anchor="lm")
        for column, picture in enumerate(pictures):
            cell = picture.resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)
            sheet.paste(cell, (LABEL_PX + column * (CELL_PX + GAP_PX), top))
    return sheet
