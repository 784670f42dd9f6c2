"""What a file is, told by its first bytes: to say of one that is no picture for us what it is."""

from pathlib import PurePath

HEAD = 512  # bytes that are enough
READ = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # by a decoder
_OTHERS = (
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 picture"), (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"\xff\x0a", "a JPEG XL picture"), (b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture"),
    (b"8BPS", "a Photoshop picture"), (b"gimp xcf", "a GIMP picture"), (b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (b"#?RADIANCE", "a Radiance picture"), (b"DDS ", "a DDS picture"), (b"\x00\x00\x01\x00", "an icon"),
    (b"%!PS", "a PostScript file"), (b"%PDF", "a PDF"), (b"<svg", "an SVG drawing"), (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"), (b"Rar!", "a RAR archive"), (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"\x1aE\xdf\xa3", "a video"),
)  # fmt: skip
_BRANDS = {
    b"heic": "a HEIC picture", b"heix": "a HEIC picture", b"hevc": "a HEIC picture", b"hevx": "a HEIC picture",
    b"heim": "a HEIC picture", b"heis": "a HEIC picture", b"mif1": "a HEIF picture", b"msf1": "a HEIF picture",
}  # fmt: skip
_SUFFIXES = {".tga": "a TGA picture", ".icb": "a TGA picture", ".vda": "a TGA picture"}  # has no mark of its own
REMEDY = "for which there is no decoder here: save it as PNG or JPEG"


def problem_of(head: bytes, name: str) -> str | None:
    """Why a file is not worth decoding, or None if a decoder should look at it.

    Args:
        head: Its first bytes.
        name: Its name; says something only where the bytes do not.
    """
    if not head:
        return "no bytes"
    if head.startswith(READ) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return None
    if head[4:8] == b"ftyp":
        return _of_brands(head)
    found = next((words for mark, words in _OTHERS if head.startswith(mark)), None)
    if found is None and b"<svg" in head[:HEAD].lower():
        found = "an SVG drawing"
    found = found or _SUFFIXES.get(PurePath(name).suffix.lower())
    if found is None:
        return "no picture: its bytes are of none of the kinds that are read"
    return f"{found}, {REMEDY}" if "picture" in found or "drawing" in found else f"no picture: it is {found}"


def _of_brands(head: bytes) -> str | None:
    """Of the container that AVIF, HEIC and videos share, by what it says to be."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[place : place + 4] for place in range(16, end - 3, 4))]
    if b"avif" in brands or b"avis" in brands:
        return None
    found = next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)
    return f"{found}, {REMEDY}" if found else "no picture: it is a video"
