"""A contact sheet needs no other file and no network, and names cannot break it."""

import io
import pathlib
import urllib.parse
from html.parser import HTMLParser

import av
import numpy as np
from PIL import Image

from tests.indexing.conftest import coloured, moving
from tests.input.bad_media import rotated
from vlp_jax.indexing import sheet
from vlp_jax.indexing.gallery import Hit


class Page(HTMLParser):
    """Attributes of a page's tags, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_picture_is_the_frame_in_the_middle_of_its_window(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height = 64, 48
        for second in range(4):
            for _ in range(25):
                grey = np.full((48, 64, 3), 50 * (second + 1), np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(grey)))
        out.mux(stream.encode())
    for span, expected in [((0.0, 1.0), 50), ((0.0, 3.0), 100), ((1.0, 4.0), 150), ((3.0, 4.0), 200)]:
        shown = sheet.look_up(Hit(0.5, "a.mp4", span), str(tmp_path), 20.0)
        picture = np.asarray(Image.open(io.BytesIO(shown.picture)))
        assert picture.shape == (240, 320, 3) and abs(int(picture.mean()) - expected) < 6


def test_a_turned_video_is_shown_upright(tmp_path):
    (tmp_path / "a.mp4").write_bytes(rotated(moving(1)))
    picture = Image.open(io.BytesIO(sheet.thumbnail(str(tmp_path / "a.mp4"), 0.5, 20.0)))
    assert picture.size == (240, 320)


def test_a_window_beyond_the_frames_shows_the_middle_of_the_video(tmp_path):
    coloured(tmp_path / "a.mp4", 100)
    assert sheet.thumbnail(str(tmp_path / "a.mp4"), 99.0, 20.0).startswith(b"\xff\xd8")


def test_the_page_holds_all_it_shows_and_links_the_files(tmp_path):
    name = 'a <b> & "c" #1%\n.mp4'
    coloured(tmp_path / name, 100)
    hits = [Hit(0.75, name, (61.0, 71.0)), Hit(0.5, "gone.mp4", (0.0, 1.0))]
    text = sheet.render("<script>alert(1)</script>", "a note", [sheet.look_up(h, str(tmp_path), 20.0) for h in hits])
    page = Page(text)
    assert "script" not in [tag for tag, _ in page.tags]
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(sources) == 1 and sources[0].startswith("data:image/jpeg;base64,")
    assert not any(word in text for word in ("http:", "https:", "//cdn", "<link", "@import", "url("))
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    there = urllib.parse.urlsplit(links[0])
    assert there.scheme == "file" and there.fragment == "t=61,71"
    assert pathlib.Path(urllib.parse.unquote(there.path)) == tmp_path / name
    for part in ("<script>alert(1)</script>", "a note", "0.750", "1:01–1:11", 'a <b> & "c" #1%\\n.mp4', "no picture: "):
        assert part in page.text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_a_name_that_is_no_utf_8_is_shown_and_linked(tmp_path):
    text = sheet.render("x", "", [sheet.look_up(Hit(0.5, "caf\udce9.mp4", (0.0, 1.0)), str(tmp_path), 20.0)])
    assert "caf%E9.mp4" in text and "caf\\udce9.mp4" in text
    text.encode()
