"""Where pictures come from, in `params.yaml`: the kinds of source, and the limits on what a search may bring."""

import unicodedata
from typing import Annotated, Literal

from pydantic import Field, field_validator

from sdlora import choices
from sdlora.config.sections import Section, on_menu

REPOSITORY = r"^\w[\w.-]*/\w[\w.-]*$"


class FolderSource(Section):
    """Pictures that lie in a folder."""

    kind: Literal["folder"]
    path: str = Field(description="folder with pictures, searched with its subfolders")


class Search(Section):
    """What every image search understands."""

    query: str = Field(min_length=1, max_length=300, description="what to search for")
    limit: int = Field(ge=1, le=1000, description="accepted pictures to stop at")
    licence: (
        Literal["creative_commons", "public_domain", "share", "share_commercially", "modify", "modify_commercially"]
        | None
    ) = Field(None, description="only pictures that the search believes to be under such a licence; null = any")
    size: Literal["small", "medium", "large", "extra_large"] | None = Field(
        None, description="only pictures of this size; null = any"
    )
    type: Literal["photo", "clipart", "line_drawing", "transparent", "animated"] | None = Field(
        None, description="only pictures of this type; null = any"
    )
    adult_filter: bool = Field(True, description="ask for the search's strict filter; false turns it off")

    @field_validator("query")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("the query is blank; say what to search for")
        if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in value):
            raise ValueError(f"{value!r} has control characters or line breaks; a query is one line of text")
        return value


class BingSource(Search):
    """Bing image search through bing-image-downloader."""

    kind: Literal["bing"]


class SeleniumSource(Search):
    """Image search in a real browser: Debian's chromium, or your own Chrome."""

    kind: Literal["selenium"]
    engine: str = Field("bing", description="which search engine's page is read")

    @field_validator("engine")
    @classmethod
    def _known_engine(cls, value: str) -> str:
        return on_menu(value, choices.ENGINES)


class HubSource(Section):
    """A Hugging Face image dataset with captions."""

    kind: Literal["hub"]
    repository: str = Field(pattern=REPOSITORY, description="owner/name on the hub")
    revision: str | None = Field(None, description="commit, tag or branch; null = main; the manifest has the commit")
    local: str | None = Field(
        None, description="folder with a copy: parquet files, save_to_disk or an image folder; nothing is downloaded"
    )
    split: str = Field("train", min_length=1, description="which split")
    image_column: str | None = Field(None, description="null = the only column with pictures")
    caption_column: str | None = Field(
        None, description="null = the first of text, caption, captions, prompt, description that exists"
    )
    limit: int | None = Field(None, ge=1, description="accepted pictures to stop at; null = all rows")


Source = Annotated[FolderSource | BingSource | SeleniumSource | HubSource, Field(discriminator="kind")]


class Scrape(Section):
    """Limits on what a search may bring. Of your own pictures, copies of references alone are refused.

    Those are left out of training where `held_out` is a number; else folders and captioned datasets are taken as they
    are.
    """

    max_mib: float = Field(20.0, gt=0, le=1000, description="largest file, MiB; reading stops there")
    max_megapixels: float = Field(32.0, gt=0, le=64, description="largest picture, megapixels, checked before decoding")
    min_side_px: int = Field(128, ge=1, le=4096, description="shortest side of a picture worth learning from, px")
    timeout_s: float = Field(10.0, gt=0, le=600, description="longest wait for a connection or for more bytes, s")
    deadline_s: float = Field(
        60.0, gt=0, le=3600, description="longest fetch of one picture with redirects and retries, s"
    )
    retries: int = Field(3, ge=0, le=10, description="further attempts after 408, 425, 429, 5xx and lost connections")
    concurrency: int = Field(16, ge=1, le=128, description="pictures fetched at once")
    host_concurrency: int = Field(4, ge=1, le=128, description="pictures fetched at once from one host")
    host_rate_per_s: float = Field(10.0, gt=0, le=10_000, description="requests a second to one host, at most")
    honour_opt_out: bool = Field(
        True, description="skip pictures whose X-Robots-Tag says noai, noimageai, noindex, noimageindex or none"
    )
    duplicate_bits: int = Field(
        10, ge=-1, le=64, description="duplicates differ in at most this many bits of their 128-bit dHash; -1 = off"
    )
