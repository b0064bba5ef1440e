"""Small drawings as SVG inside the page; their colours are the page's, so that they follow it into the dark."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlp_jax.reporting.html import Html, tag

_WIDTH, _HEIGHT = 360, 200  # of a chart, in its own units
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 34  # margins
_POINTS = 240  # of a line at most: more are not seen
_DASHES = (None, "6 3", "2 3", "8 3 2 3")
_COLORS = 7


@dataclasses.dataclass(frozen=True)
class Line:
    """One run's line.

    Attributes:
      run: its number among the runs.
      at: float `[N]`, where on the x axis; may be nan.
      drawn: float `[N]`.
      faint: float `[N]`, what stands behind it: what `drawn` is the average of; None for nothing.
    """

    run: int
    at: np.ndarray
    drawn: np.ndarray
    faint: np.ndarray | None = None


def look(run: int) -> dict[str, Any]:
    """Attributes that colour and dash what belongs to a run, by its number."""
    return {"class_": f"run{run % _COLORS}", "stroke_dasharray": _DASHES[run // _COLORS % len(_DASHES)]}


def chart(lines: Sequence[Line], x_label: str, title: str) -> Html:
    """Lines over one x axis. Values that are not finite interrupt a line."""
    finite = lambda arrays: np.concatenate([x[np.isfinite(x)] for x in arrays if x is not None])
    heights = finite([y for line in lines for y in (line.drawn, line.faint)])
    places = finite([line.at for line in lines])
    if not heights.size or not places.size:
        return tag("p", "no finite value was logged", class_="quiet")
    x_ticks, y_ticks = ticks(min(0.0, places.min()), places.max(), 4), ticks(heights.min(), heights.max(), 4)
    x_ticks = [x for x in x_ticks if x <= places.max() * (1 + 1e-9)] if places.max() > 0 else x_ticks
    low_x, high_x = x_ticks[0], max(x_ticks[-1], places.max())
    low_y, high_y = y_ticks[0], y_ticks[-1]
    place_x = lambda x: _LEFT + (x - low_x) / (high_x - low_x) * (_WIDTH - _LEFT - _RIGHT)
    place_y = lambda y: _HEIGHT - _BOTTOM - (y - low_y) / (high_y - low_y) * (_HEIGHT - _TOP - _BOTTOM)
    parts = [tag("title", title)]
    for y in y_ticks:
        at = round(place_y(y), 1)
        parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(tag("text", short(y), x=_LEFT - 6, y=at + 4, text_anchor="end"))
    for x in x_ticks:
        parts.append(tag("text", short(x), x=round(place_x(x), 1), y=_HEIGHT - _BOTTOM + 15, text_anchor="middle"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(tag("text", x_label, x=middle, y=_HEIGHT - 4, text_anchor="middle"))
    for line in lines:
        for kind, values in (("faint", line.faint), ("drawn", line.drawn)):
            if values is None:
                continue
            style = look(line.run)
            style["class_"] += f" {kind}"
            for piece in _pieces(line.at, values):
                xs, ys = place_x(line.at[piece]), place_y(values[piece])
                if len(piece) == 1:
                    parts.append(tag("circle", cx=f"{xs[0]:.1f}", cy=f"{ys[0]:.1f}", r=2.5, **style))
                else:
                    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys))
                    parts.append(tag("polyline", points=points, **style))
    return tag("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img")


def interval(value: float, low: float, high: float) -> Html:
    """A percentage and its interval on a line from 0 to 100."""
    parts = [
        tag("line", x1=0, x2=100, y1=6, y2=6, class_="grid"),
        tag("line", x1=round(low, 1), x2=round(high, 1), y1=6, y2=6, class_="range"),
        tag("line", x1=round(value, 1), x2=round(value, 1), y1=1, y2=11, class_="value"),
    ]
    return tag("svg", *parts, viewBox="-4 0 108 12", class_="interval", aria_hidden="true")


def share(part: float) -> Html:
    """A part in [0, 1] of a bar."""
    bars = [tag("rect", width=100, height=10, class_="all"), tag("rect", width=round(100 * part, 1), height=10)]
    return tag("svg", *bars, viewBox="0 0 100 10", preserveAspectRatio="none", class_="share", aria_hidden="true")


def legend(names: Sequence[str]) -> Html:
    """The runs and how their lines look."""
    items = []
    for run, name in enumerate(names):
        sample = tag("line", x1=0, x2=32, y1=6, y2=6, stroke_width=3, **look(run))
        items.append(tag("li", tag("svg", sample, viewBox="0 0 32 12", aria_hidden="true"), name))
    return tag("ul", *items, class_="legend")


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers that span `[low, high]`, steps of 1, 2 or 5 times a power of ten."""
    low, high = float(low), float(high)
    if low == high:  # a flat line lies in the middle
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * size for size in (1, 2, 5, 10) if power * size >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def short(value: float) -> str:
    """A number as few characters: 2.5k, 30T, 0.004, 1e-5."""
    size = abs(value)
    for name, unit in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size >= unit:
            return f"{value / unit:.4g}{name}" if size < 1e21 else f"{value:.2g}"
    return (f"{value:.4g}" if size >= 1 else f"{value:.3g}").replace("e-0", "e-")


def _pieces(at: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """Indices of what is drawn in one stroke each: finite, and of a long line the extremes of each part of it."""
    good = np.flatnonzero(np.isfinite(at) & np.isfinite(values))
    out = []
    for piece in np.split(good, np.flatnonzero(np.diff(good) > 1) + 1):
        if len(piece) > _POINTS:
            parts = np.array_split(piece, _POINTS // 2)
            ends = [(part[values[part].argmin()], part[values[part].argmax()]) for part in parts]
            piece = np.unique([piece[0], *np.ravel(ends), piece[-1]])
        if len(piece):
            out.append(piece)
    return out


def figure(drawing: Html, name: str, *notes: Any) -> Html:
    """A drawing below its name."""
    return tag("figure", tag("figcaption", tag("b", name), " ", tag("span", *notes, class_="quiet")), drawing)
