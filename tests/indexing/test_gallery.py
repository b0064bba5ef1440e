"""The nearest windows are those of a plain sort; ties stand in the order of paths."""

import numpy as np
import pytest

from vlp_jax.indexing.folder import Stamp
from vlp_jax.indexing.gallery import Gallery
from vlp_jax.indexing.store import Entry


def build(counts, matrix):
    stamp = Stamp(0, 0, 0)
    entries = [
        Entry(f"{number:03}.mp4", stamp, 0, tuple((float(i), i + 1.0) for i in range(count)))
        for number, count in enumerate(counts)
    ]
    return Gallery(entries, np.asarray(matrix, np.float32))


def oracle(counts, matrix, query, every_window, without):
    found = []
    row = 0
    for number, count in enumerate(counts):
        scored = [(-float(np.dot(matrix[row + i], query)), f"{number:03}.mp4", float(i)) for i in range(count)]
        row += count
        if f"{number:03}.mp4" != without:
            found += scored if every_window else [min(scored)]
    return sorted(found)


@pytest.mark.parametrize("every_window", [False, True])
@pytest.mark.parametrize("without", ["", "004.mp4"])
def test_the_nearest_are_those_of_a_plain_sort(every_window, without):
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 5, 40).tolist()
    # Small whole numbers: many ties, and products without rounding.
    matrix, query = rng.integers(-2, 3, (sum(counts), 3)), rng.integers(-2, 3, 3)
    expected = oracle(counts, matrix, query, every_window, without)
    for top in (1, 7, 30, 500):
        hits = build(counts, matrix).nearest(query, top, every_window=every_window, without=without)
        assert [(-hit.score, hit.path, hit.span[0]) for hit in hits] == expected[:top]


def test_an_empty_gallery_and_one_of_the_asked_file_alone_find_nothing():
    assert build([], np.zeros((0, 2))).nearest(np.ones(2), 3) == []
    assert build([2], np.ones((2, 2))).nearest(np.ones(2), 3, without="000.mp4") == []


def test_the_mean_of_a_file_is_that_of_its_windows():
    gallery = build([1, 2], [[9, 9], [1, 2], [3, 4]])
    np.testing.assert_array_equal(gallery.mean("001.mp4"), [2, 3])
    assert gallery.mean("else.mp4") is None and gallery.files == 2 and len(gallery) == 3
