"""A contact sheet: what a query has found, with a picture of each window, as one HTML file that needs nothing else."""

import base64
import dataclasses
import fractions
import html
import math
import os
import pathlib
import urllib.parse

import av
import numpy as np

from vlp_jax.indexing.gallery import Hit
from vlp_jax.input.container import VideoError, reasons
from vlp_jax.input.decoder import Reader
from vlp_jax.text import duration, visible
from vlp_jax.types import UserError

WIDTH = 320  # pixels of a picture's longer side

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --card: #f4f4f2; --text: #1b1b1a; --quiet: #5f5f5b;
  --link: #0b57b0; }
@media (prefers-color-scheme: dark) {
  :root { --page: #161615; --card: #232322; --text: #ececea; --quiet: #a5a5a0; --link: #8ab8f5; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 1.25rem; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.35rem; overflow-wrap: anywhere; }
p { margin: .25rem 0 1.25rem; color: var(--quiet); overflow-wrap: anywhere; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 200px), 1fr)); gap: .9rem; margin: 0;
  padding: 0; list-style: none; }
li { background: var(--card); border-radius: 8px; overflow: hidden; }
img, .none { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: #000; }
.none { padding: .75rem; color: #ddd; font-size: .85rem; overflow-wrap: anywhere; }
.about { padding: .5rem .7rem .65rem; }
.line { display: flex; justify-content: space-between; color: var(--quiet); font-variant-numeric: tabular-nums; }
a { color: var(--link); overflow-wrap: anywhere; }
"""


def check_file(named: str, file: str) -> None:
    """Refuses a contact sheet's file that cannot be written; `named` is what stands before it, such as `--html=`.

    Raises:
      UserError: it is a folder, or its folder is not there or cannot be written.
    """
    folder = os.path.dirname(file) or "."
    if not file:
        raise UserError(f"{named}: expected a file's name, such as results.html")
    if os.path.isdir(file):
        raise UserError(
            f"{named}{file}: a folder; expected a file's name, such as {os.path.join(file, 'results.html')}"
        )
    if not os.path.isdir(folder):
        raise UserError(f"{named}{file}: no folder {folder}; make it, or name a file elsewhere")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{named}{file}: the folder {folder} cannot be written; name a file elsewhere")


@dataclasses.dataclass(frozen=True)
class Shown:
    """A hit on the sheet, with its file's path and the picture, JPEG; or why there is none."""

    hit: Hit
    path: pathlib.Path
    picture: bytes = b""
    error: str = ""


def look_up(hit: Hit, root: str, timeout_s: float) -> Shown:
    """Decodes the middle frame of a hit; a file that has gone meanwhile is shown without one."""
    path = pathlib.Path(root, hit.path).absolute()
    try:
        return Shown(hit, path, thumbnail(str(path), sum(hit.span) / 2, timeout_s))
    except VideoError as error:
        return Shown(hit, path, error=str(error))


def thumbnail(path: str, seconds: float, timeout_s: float) -> bytes:
    """A JPEG of the first frame at a time or within a second after it, or else of the middle one of the video.

    Its longer side has WIDTH pixels.

    Raises:
      VideoError: there is none that decodes.
    """
    try:
        frame = Reader(path, timeout_s, span=(seconds, seconds + 1.0)).read(lambda count: [0])[0]
    except VideoError:  # pictures may stand longer than a second, and headers be wrong
        frame = Reader(path, timeout_s).read(lambda count: [count // 2])[0]
    scale = WIDTH / max(frame.width, frame.height)
    size = {"width": max(2, round(frame.width * scale)), "height": max(2, round(frame.height * scale))}
    with reasons("no picture of it can be made"):
        pixels = frame.reformat(**size, format="rgb24", threads=1).to_ndarray().astype(np.uint8)
        turned = np.rot90(pixels, round(frame.rotation / 90) % 4)
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(turned), format="rgb24")
        encoder = av.CodecContext.create("mjpeg", "w")
        assert isinstance(encoder, av.VideoCodecContext)
        encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, "yuvj420p"
        encoder.time_base, encoder.options = fractions.Fraction(1, 25), {"qmin": "4", "qmax": "4"}
        packets = [*encoder.encode(picture.reformat(format="yuvj420p")), *encoder.encode(None)]
    return b"".join(map(bytes, packets))


def render(title: str, note: str, shown: list[Shown]) -> str:
    """The page.

    Args:
      title: what was asked for.
      note: a line below it.
    """
    items = "\n".join(_item(rank, one) for rank, one in enumerate(shown, 1))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{_text(title)}</h1>
<p>{_text(note)}</p>
<ol>
{items}
</ol>
</body>
</html>
"""


def _item(rank: int, one: Shown) -> str:
    start, end = one.hit.span
    name = _text(one.hit.path)
    if one.picture:
        data = base64.b64encode(one.picture).decode()
        picture = f'<img src="data:image/jpeg;base64,{data}" alt="{name} at {duration((start + end) / 2)}">'
    else:
        picture = f'<div class="none">no picture: {_text(one.error)}</div>'
    # A player that knows media fragments begins there.
    link = f"file://{urllib.parse.quote_from_bytes(bytes(one.path))}#t={math.floor(10 * start) / 10:g},{end:g}"
    return (
        f'<li>{picture}<div class="about"><div class="line"><span>{rank}. score {one.hit.score:.3f}</span>'
        f'<span>{duration(start)}–{duration(end)}</span></div><a href="{html.escape(link)}">{name}</a></div></li>'
    )


def _text(text: str) -> str:
    """Escaped for HTML; what is no character, or cannot be seen, as \\x0a."""
    return html.escape(visible(text))
