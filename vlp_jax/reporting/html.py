"""HTML in strings: every text is escaped unless it is `Html`, which only functions of this package make."""

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Any

NOTHING = "–"  # in a cell
_ALONE = ("img", "meta", "circle", "line", "polyline", "rect")  # without an end tag


class Html(str):
    """Text that is HTML already."""


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """One element; `class_` stands for `class` and `a_b` for `a-b`; attributes that are None or False are left out.

    Args:
      children: `Html`, or what `str` makes a text of, which is escaped.
    """
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _ALONE:
        return Html(f"<{name}{given}>" if name in ("img", "meta") else f"<{name}{given}/>")
    return Html(f"<{name}{given}>{joined(children)}</{name}>")


def joined(parts: Iterable[Any]) -> Html:
    """Elements and texts, one after the other."""
    return Html("".join(part if isinstance(part, Html) else html.escape(str(part)) for part in parts))


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], *, numbers: int = 0, marked: Iterable[int] = ()) -> Html:
    """A table that scrolls by itself where the screen is narrower; the first cell of a row names it.

    Args:
      numbers: so many of the last columns are aligned to the right.
      marked: numbers of rows that are highlighted.
    """
    marked = set(marked)

    def cells(kind: str, row: Sequence[Any]) -> Html:
        right = len(row) - numbers
        first = tag("th", row[0], scope="row" if kind == "td" else "col")
        others = (tag(kind, x, class_="n" if i >= right else None) for i, x in enumerate(row[1:], 1))
        return joined([first, *others])

    body = joined(tag("tr", cells("td", row), class_="marked" if i in marked else None) for i, row in enumerate(rows))
    whole = tag("table", tag("thead", tag("tr", cells("th", head))), tag("tbody", body))
    return tag("div", whole, class_="scroll", tabindex="0")  # to be scrolled by keys, too


def details(summary: str, *children: Any) -> Html:
    """What is there for those who ask for it."""
    return tag("details", tag("summary", summary), *children)


def picture(png: bytes, text: str) -> Html:
    """A PNG inside the page, with `text` for those who do not see it."""
    return tag("img", src=f"data:image/png;base64,{base64.b64encode(png).decode()}", alt=text)


def page(title: str, header: Html, sections: Sequence[tuple[str, Html]]) -> str:
    """One file without any other: sections below a line of links to them; light or dark as the reader's system is."""
    names = [(title, f"section-{number}") for number, (title, _) in enumerate(sections)]
    links = tag("nav", *(tag("a", text, href=f"#{name}") for text, name in names))
    parts = [
        tag("section", tag("h2", text), body, id=name) for (text, name), (_, body) in zip(names, sections, strict=True)
    ]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(_STYLE)),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", tag("header", header, links), *parts), lang="en") + "\n"


# Colours of runs: Okabe and Ito (2008), which the colour-blind tell apart; brighter ones of the same hues on dark.
_STYLE = """
:root { --paper: #fff; --raised: #f5f6f8; --ink: #1b1f24; --quiet: #5c6570; --line: #d9dde2; --mark: #fff3c9;
  --link: #0b5cad; --run0: #0072b2; --run1: #d55e00; --run2: #009e73; --run3: #cc79a7; --run4: #e69f00;
  --run5: #56b4e9; --run6: #000; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --raised: #1e2227; --ink: #e6e9ec; --quiet: #9aa4af;
  --line: #343a41; --mark: #40370f; --link: #7db7f0; --run0: #4ea8e6; --run1: #ff8a45; --run2: #2fc79a;
  --run3: #e79cc6; --run4: #f0b429; --run5: #9bd7fb; --run6: #fff; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1rem clamp(.8rem, 3vw, 2rem) 4rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: .5rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 60rem; overflow-wrap: anywhere; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin-top: .75rem; }
.quiet, summary, caption { color: var(--quiet); }
.cost { font-size: 1.05rem; }
.missing { border-left: 4px solid var(--run4); background: var(--raised); padding: .5rem .9rem; margin: .9rem 0; }
.missing ul { margin: .25rem 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; width: max-content; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem 1.2rem .28rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  font-weight: 400; }
td { max-width: min(34rem, 70vw); overflow-wrap: break-word; }
tbody th { white-space: nowrap; }
thead th { color: var(--quiet); border-bottom: 2px solid var(--line); }
.n { text-align: right; max-width: min(17rem, 70vw); }
.measured { white-space: nowrap; }
.marked > * { background: var(--mark); }
details { margin: .6rem 0; }
summary { cursor: pointer; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem 1.5rem; }
figure { margin: 0; }
figcaption { font-size: .9rem; overflow-wrap: anywhere; }
figcaption .quiet { font-size: .85rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--quiet); font: 11px system-ui, sans-serif; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg polyline { fill: none; stroke-linejoin: round; }
svg .faint { stroke-width: 1; opacity: .35; }
svg .drawn { stroke-width: 2; }
.pictures figure { margin: 0 0 1.5rem; }
.pictures img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; margin: .5rem 0 1rem; list-style: none; }
.legend svg { display: inline-block; width: 2rem; height: .7rem; vertical-align: middle; margin-right: .4rem; }
.interval { display: inline-block; width: 6rem; height: .7rem; vertical-align: middle; margin-left: .6rem; }
.interval .range { stroke: var(--run0); stroke-width: 7; }
.interval .value { stroke: var(--ink); stroke-width: 2; }
.interval .grid { stroke-width: 2; }
.results { display: flex; flex-wrap: wrap; gap: 0 3rem; }
.results > div { max-width: 100%; min-width: 0; }
.share { display: inline-block; width: 5rem; height: .6rem; vertical-align: middle; margin-left: .6rem; }
.share rect { fill: var(--run0); }
.share .all { fill: var(--line); }
@media (max-width: 40rem) {
  .interval, .share { display: none; }
  .n { max-width: 11rem; }
  tbody th { white-space: normal; max-width: 13rem; overflow-wrap: break-word; }
}
""" + "".join(f".run{n} {{ stroke: var(--run{n}); }} circle.run{n} {{ fill: var(--run{n}); }}\n" for n in range(7))
