"""The image search's two faces: the async endpoint and the result page, as Bing writes them."""

import html
import json
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, urlencode

PAGE = 35  # results on one page of the async endpoint, at most
BATCH = 12  # results that the page adds at a time
SCROLLED = 2  # batches that scrolling brings before the page wants its button pressed
PICTURE_HOSTS = tuple(f"pictures-{number}.example" for number in range(4))


@dataclass(frozen=True)
class Result:
    """One entry of the search."""

    url: str
    page_url: str = "https://gallery.example/"
    title: str = ""
    filters: frozenset[str] = frozenset()  # qft filters it passes; others would hide it


@dataclass(frozen=True)
class Search:
    """What the search knows about one query: the endpoint and the page need not agree."""

    endpoint: tuple[Result, ...] = ()
    page: tuple[Result, ...] = ()
    compact: bool = True  # JSON without spaces, which the package needs


def results(numbers: Iterable[int]) -> tuple[Result, ...]:
    """Results that lead to `pictures.picture(number)`, on several hosts."""
    return tuple(
        Result(
            url=f"https://{PICTURE_HOSTS[n % len(PICTURE_HOSTS)]}/picture/{n}.jpg",
            page_url=f'https://gallery.example/{n}?a=1&b="two"',
            title=f"Picture “{n}” <of> many & more",
        )
        for n in numbers
    )


def passing(found: Iterable[Result], qft: str) -> tuple[Result, ...]:
    """Results that pass every filter of Bing's `qft` parameter."""
    wanted = {word.removeprefix("filterui:") for word in qft.replace("+", " ").split()}
    return tuple(result for result in found if wanted <= result.filters)


def anchors(found: Iterable[Result], compact: bool = True) -> str:
    """The results as markup: JSON in an attribute, with Bing's own escapes."""
    lines = []
    for result in found:
        value = {"purl": result.page_url, "murl": result.url, "turl": _thumbnail(result.url), "t": result.title}
        text = json.dumps(value, separators=(",", ":") if compact else None).replace("&", "\\u0026")
        lines.append(
            f'<div class="iuscp"><a class="iusc" href="#" m="{html.escape(text)}">'
            f'<img class="mimg" alt="" width="120" height="120" '
            f'data-src="{html.escape(_thumbnail(result.url))}"></a></div>'
        )
    return "\n".join(lines)


def _thumbnail(url: str) -> str:
    return "https://tse1.mm.bing.net/th?" + urlencode({"q": url})


def page_html(query: str, search: Search, qft: str) -> str:
    """The result page: a first batch, more on scrolling, then a button; every thumbnail only when it is seen."""
    found = passing(search.page, qft)
    return (
        _PAGE.replace("QUERY", html.escape(query))
        .replace("FIRST", anchors(found[:BATCH]))
        .replace("SOURCE", "/images/async?SFX=2&q=" + quote(query) + "&qft=" + quote(qft))
        .replace("TOTAL", str(len(found)))
        .replace("BATCH", str(BATCH))
        .replace("SCROLLED", str(SCROLLED))
    )


_PAGE = """<!doctype html><html><head><meta charset="utf-8"><title>QUERY - images</title>
<style>.iuscp { display: inline-block; width: 300px; height: 420px } .btn_seemore { display: none }</style></head>
<body><div id="mmComponent_images_1">FIRST</div>
<div class="mm_seemore"><a class="btn_seemore" href="#">See more images</a></div>
<script>
const list = document.querySelector("#mmComponent_images_1"), button = document.querySelector(".btn_seemore");
let shown = Math.min(BATCH, TOTAL), scrolled = 0, busy = false;
const seen = new IntersectionObserver(entries => entries.forEach(entry => {
  if (entry.isIntersecting && entry.target.dataset.src) {
    entry.target.src = entry.target.dataset.src; delete entry.target.dataset.src;
  }
}));
const watch = () => document.querySelectorAll("img[data-src]").forEach(image => seen.observe(image));
async function more() {
  if (busy || shown >= TOTAL) return;
  busy = true;
  const answer = await fetch("SOURCE&first=" + shown + "&count=BATCH");
  list.insertAdjacentHTML("beforeend", await answer.text());
  shown = Math.min(shown + BATCH, TOTAL);
  busy = false;
  button.style.display = scrolled >= SCROLLED && shown < TOTAL ? "block" : "none";
  watch();
}
addEventListener("scroll", () => {
  const atEnd = innerHeight + scrollY >= document.body.scrollHeight - 50;
  if (atEnd && !busy && scrolled < SCROLLED) { scrolled += 1; more(); }
});
button.addEventListener("click", event => {
  event.preventDefault(); button.style.display = "none"; scrolled = 0; more();
});
watch();
</script></body></html>"""
