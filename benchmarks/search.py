"""Seconds of a search among many clips: `python -m benchmarks.search [--workdir RUN]`.

Compares the product of a matrix and a vector that `vlp_jax.search` uses, with FAISS's exact index where that is
installed (`pip install faiss-cpu`), on random embeddings of unit length; with --workdir also whole queries as the
prompt answers them: tokenise, embed the text, score, take the best. Prints a table and ends with one JSON line.
"""

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vlp_jax import analysis
from vlp_jax.indexing.folder import Stamp
from vlp_jax.indexing.gallery import Gallery
from vlp_jax.indexing.searcher import Searcher
from vlp_jax.indexing.store import Entry

TOP = 10


def units(count: int, width: int, seed: int) -> np.ndarray:
    """Random directions, float32 `[count, width]`."""
    x = np.random.default_rng(seed).standard_normal((count, width), np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def gallery_of(matrix: np.ndarray) -> Gallery:
    """Files of one window each."""
    stamp = Stamp(0, 0, 0)
    return Gallery([Entry(f"{row}.mp4", stamp, row, ((0.0, 10.0),)) for row in range(len(matrix))], matrix)


def seconds(call: Callable[[Any], Any], queries: list[Any]) -> dict[str, float]:
    """Median and largest of one call for each query, after one that does not count."""
    call(queries[0])
    taken = []
    for query in queries:
        start = time.perf_counter()
        call(query)
        taken.append(time.perf_counter() - start)
    return {"median_s": float(np.median(taken)), "max_s": max(taken)}


def faiss_index(matrix: np.ndarray) -> Any:
    """FAISS's exact index by inner product."""
    import faiss

    index = faiss.IndexFlatIP(matrix.shape[1])
    index.add(matrix)
    return index


def measure(count: int, width: int, queries: int) -> dict[str, dict[str, float]]:
    """Way -> seconds of a query."""
    matrix, asked = units(count, width, 0), list(units(queries, width, 1))
    gallery = gallery_of(matrix)
    found = {
        "product alone": seconds(lambda q: matrix @ q, asked),
        "product and best 10": seconds(lambda q: gallery.nearest(q, TOP), asked),
    }
    if importlib.util.find_spec("faiss"):
        index = faiss_index(matrix)
        found["FAISS, exact"] = seconds(lambda q: index.search(q[None], TOP), asked)
        score, number = index.search(asked[0][None], TOP)
        own = gallery.nearest(asked[0], TOP)
        assert [hit.path for hit in own] == [f"{n}.mp4" for n in number[0]], "FAISS finds others"
        np.testing.assert_allclose([hit.score for hit in own], score[0], atol=1e-5)
    return found


def whole(workdir: str, count: int, queries: int) -> tuple[int, dict[str, dict[str, float]]]:
    """The width of a run's embeddings, and the seconds of queries by its text encoder."""
    searcher = Searcher(analysis.load(workdir), "", 10.0, 10.0)
    width = searcher.loaded.config.model.projection
    searcher.gallery = gallery_of(units(count, width, 0))
    words = "red green blue circle square star moves left right grows".split()
    rng = np.random.default_rng(2)
    asked = [" ".join(rng.choice(words, 6)) for _ in range(queries)]
    return width, {"whole text query": seconds(lambda q: searcher.answer(searcher.text(q), TOP, False), asked)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[100_000, 1_000_000], help="clips (%(default)s)")
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256], help="of embeddings (%(default)s)")
    parser.add_argument("--queries", type=int, default=50, help="each is timed alone (%(default)s)")
    parser.add_argument("--workdir", help="a run, whose text encoder answers whole queries")
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    results = []
    print(f"| {cores} cores: clips | width | way | median, ms | largest, ms |\n|---|---|---|---|---|", flush=True)
    for count in given.counts:
        rows = [(width, measure(count, width, given.queries)) for width in given.widths]
        if given.workdir:
            rows.append(whole(given.workdir, count, given.queries))
        for width, found in rows:
            for way, x in found.items():
                cells = (
                    f"{count:,}",
                    width,
                    way,
                    f"{1e3 * x['median_s']:.1f}",
                    f"{1e3 * x['max_s']:.1f}",
                )
                print(f"| {' | '.join(map(str, cells))} |", flush=True)
                results.append({"clips": count, "width": width, "way": way, **x})
    print(json.dumps({"benchmark": "search", "cores": cores, "results": results}))


if __name__ == "__main__":
    main()
