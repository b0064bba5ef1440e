"""Compares two results of `vlp_jax.evaluate`, query by query: `python -m vlp_jax.compare A.json B.json`.

Both must be of one task on one split of one dataset. Each metric is printed for A and B, with B's difference to A, its
95% interval and p by the paired bootstrap over clips; the last line is the same as JSON.
"""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from vlp_jax import launch
from vlp_jax.evaluation import ranking, statistics
from vlp_jax.types import UserError

FLAGS = flags.FLAGS

_RANKS = ("text_to_video_rank", "video_to_text_rank")
_SHOWN = 3  # queries named in a message
_TEXTS = ("query_id", "clip_id", "caption", "answer", "type")  # of a row, where they are there


def main(argv: list[str]) -> None:
    if len(argv) != 3:
        raise UserError(f"expected two result files, A.json B.json, of vlp_jax.evaluate; got {len(argv) - 1} arguments")
    for name, value, least in (("bootstrap", FLAGS.bootstrap, 1), ("seed", FLAGS.seed, 0)):
        if value < least:
            raise UserError(f"--{name}={value}: expected {least} or more")
    paths = [pathlib.Path(name) for name in argv[1:]]
    found = compare(*(read(path) for path in paths), samples=FLAGS.bootstrap, seed=FLAGS.seed)
    print(table(found, *map(str, paths)))
    print(json.dumps({"a": str(paths[0]), "b": str(paths[1]), **found}))


def read(path: pathlib.Path) -> dict[str, Any]:
    """Reads a result.

    Raises:
      UserError: no such file, no JSON, or nothing that can be compared query by query: it quotes the row.
    """
    try:
        result = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected a result of vlp_jax.evaluate in JSON, but {error}") from error
    rows = result.get("per_query") if isinstance(result, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and "query_id" in row for row in rows):
        raise UserError(
            f"{path}: expected `per_query`, rows that each have a query_id; make it anew with vlp_jax.evaluate"
        )
    if not all(_columns(row) == _columns(rows[0]) for row in rows) or not _columns(rows[0]):
        raise UserError(f"{path}: expected every row of `per_query` to have {' and '.join(_RANKS)}, or `correct`")
    for key in ("task", "dataset", "split", "positives"):
        _check(path, "the result", result, key, isinstance(result.get(key), (str, type(None))), "text")
    # What groups the rows: captions of one clip are ranked, and drawn, together.
    needed = {"query_id"} | ({"clip_id"} if _columns(rows[0]) == _RANKS else set())
    needed |= {"caption"} if result.get("positives") == "caption" else set()
    for number, row in enumerate(rows):
        where = f"row {number} of `per_query`"
        for key in _TEXTS:
            _check(path, where, row, key, isinstance(row.get(key, None if key in needed else ""), str), "text")
        for key in _columns(row):
            value = row[key]
            right = key == "correct"
            fine = isinstance(value, int) and (value in (0, 1) if right else value >= 1 and value is not True)
            _check(path, where, row, key, fine, "0 or 1" if right else "a whole number from 1")
    if len({row["query_id"] for row in rows}) < len(rows):
        raise UserError(f"{path}: a query_id occurs twice in `per_query`, so that rows cannot be paired")
    return result


def _check(path, where, row, key, fine, expected):
    if not fine:
        raise UserError(f"{path}: {key} of {where} is {row.get(key)!r}, expected {expected}: it is damaged")


def compare(a: dict[str, Any], b: dict[str, Any], *, samples: int, seed: int) -> dict[str, Any]:
    """Compares results that `read` gave.

    Returns:
      `{task, dataset, split, queries, metrics: {name: {a, b, difference, low, high, p}}}`; names are
      `text_to_video/R@1` and its like, or `accuracy` and `accuracy/TYPE`, in percent. Differences are b less a.

    Raises:
      UserError: the results are of different tasks, data, splits or queries; it names the difference.
    """
    rows_a, rows_b = _paired_rows(a, b)
    metrics: dict[str, dict[str, float]] = {}
    shared = a.get("positives") == "caption"
    for name, index, column, statistic, names in _measures(rows_a, shared):
        one, other = (np.array([rows[i][column] for i in index]) for rows in (rows_a, rows_b))
        clips = [rows_a[i].get("caption" if shared else "clip_id", rows_a[i]["query_id"]) for i in index]
        change = statistics.paired(one, other, statistic, groups_Q=clips, samples=samples, seed=seed)
        measured = {"a": statistic(one), "b": statistic(other), **change}
        for i, metric in enumerate(names):
            numbers = {key: value[i] for key, value in measured.items()}
            metrics[f"{name}/{metric}" if metric else name] = {key: float(value) for key, value in numbers.items()}
    return {
        "task": _task(a),
        "dataset": a.get("dataset"),
        "split": a.get("split"),
        "queries": len(rows_a),
        "bootstrap": samples,
        "resampled": "captions" if shared else "clips",
        "metrics": metrics,
    }


def table(found: dict[str, Any], name_a: str, name_b: str) -> str:
    """The comparison as text."""
    width = max(len(name) for name in found["metrics"]) + 2
    lines = [
        f"A: {name_a}",
        f"B: {name_b}",
        f"{found['task']}, {found['split']} of {found['dataset']}, {found['queries']} queries",
        f"{'':{width}}{'A':>10}{'B':>10}{'B - A':>10}{'95% interval':>20}{'p':>9}",
    ]
    for name, m in found["metrics"].items():
        ends = f"{m['low']:+.2f} to {m['high']:+.2f}"
        lines.append(f"{name:{width}}{m['a']:10.2f}{m['b']:10.2f}{m['difference']:+10.2f}{ends:>20}{m['p']:9.4f}")
    drawn = f"{found['bootstrap']} resamples of the {found['resampled']}"
    lines.append(f"paired bootstrap, {drawn}; p two-sided, for each metric alone")
    return "\n".join(lines)


def _columns(row: dict[str, Any]) -> tuple[str, ...]:
    """What of a row can be compared: both ranks, or whether the answer is right; () where there is neither."""
    if all(column in row for column in _RANKS):
        return _RANKS
    return ("correct",) if "correct" in row else ()


def _task(result: dict[str, Any]) -> str:
    return result.get("task") or ("retrieval" if _columns(result["per_query"][0]) == _RANKS else "answers")


def _paired_rows(a, b):
    """The rows of both results, those of b in a's order."""

    def refuse(what, one, other):
        raise UserError(
            f"A and B are results of different {what}: {one} and {other}; evaluate both runs with the same flags"
        )

    if _task(a) != _task(b):
        refuse("tasks", repr(_task(a)), repr(_task(b)))
    for key, what, default in (
        ("dataset", "data", None),
        ("split", "splits", None),
        ("positives", "positives", "clip"),
    ):
        one, other = a.get(key, default), b.get(key, default)
        if one != other and not (key == "dataset" and one and other and os.path.abspath(one) == os.path.abspath(other)):
            refuse(what, repr(one), repr(other))
    rows, others = a["per_query"], {row["query_id"]: row for row in b["per_query"]}
    if _columns(rows[0]) != _columns(b["per_query"][0]):
        refuse("kinds", ", ".join(_columns(rows[0])), ", ".join(_columns(b["per_query"][0])))
    own = {row["query_id"] for row in rows}
    only_a, only_b = [q for q in own if q not in others], [q for q in others if q not in own]
    if only_a or only_b:
        first = lambda ids: f" (first {', '.join(map(repr, sorted(map(str, ids))[:_SHOWN]))})" if ids else ""
        name = lambda ids: f"{len(ids)}{first(ids)}"
        refuse("queries", f"{name(only_a)} are only in A", f"{name(only_b)} only in B")
    # What a query asks must be the same too, not only its name.
    for row in rows:
        for key in ("clip_id", "caption", "answer", "type"):
            if row.get(key) != others[row["query_id"]].get(key):
                refuse(
                    "data",
                    f"the {key} of query {row['query_id']!r} is {row.get(key)!r} in A",
                    f"{others[row['query_id']].get(key)!r} in B",
                )
    return rows, [others[row["query_id"]] for row in rows]


def _measures(rows, shared):
    """Yields `(name, rows, column, statistic, names of its numbers)` of everything that can be compared.

    Args:
      shared: whether clips share captions.
    """
    everything = list(range(len(rows)))
    if _columns(rows[0]) == _RANKS:
        # A clip is one query of the second direction, whatever the number of its captions; and a caption that clips
        # share is one query of the first.
        once = lambda key: list({row[key]: i for i, row in reversed(list(enumerate(rows)))}.values())
        first = once("clip_id")
        statistic: Callable = lambda x: np.array(list(ranking.summarise(x).values()))
        for column, index in zip(_RANKS, (once("caption") if shared else everything, first)):
            yield column.removesuffix("_rank"), index, column, statistic, ranking.METRICS
        return
    percent: Callable = lambda x: np.array([100 * x.mean()])
    yield "accuracy", everything, "correct", percent, ("",)
    kinds = sorted({row["type"] for row in rows if row.get("type")})
    for kind in kinds if len(kinds) > 1 else ():
        yield f"accuracy/{kind}", [i for i in everything if rows[i].get("type") == kind], "correct", percent, ("",)


def cli() -> None:
    """Entry point: a UserError becomes one message and exit status 2."""
    # Here, as vlp_jax.evaluate has a flag of that name, too: both modules can be imported by one process.
    flags.DEFINE_integer("bootstrap", 1000, "Resamples behind intervals and p, 1 or more.")
    flags.DEFINE_integer("seed", 0, "Seed of the resamples.")
    launch.run_app(main)


if __name__ == "__main__":
    cli()
