"""The section of evaluations: results of one task on one split side by side, with their intervals."""

import collections
from collections.abc import Sequence
from typing import Any

from vlp_jax.reporting import charts
from vlp_jax.reporting.contents import Contents
from vlp_jax.reporting.html import NOTHING, Html, details, joined, table, tag

_CONDITIONS = ("training", "frames", "rerank", "ablate")  # of an evaluation, beside its metrics
_NO_METRICS = ("selected", "intervals", "by_type", "captions_per_clip", "clips_per_caption")


def section(runs: Sequence[Contents]) -> Html:
    """A table for each task and split, a column for each result of each run."""
    tables: dict[tuple[str, str, str], list[tuple[str, dict[str, Any]]]] = collections.defaultdict(list)
    for run in runs:
        for file, result in run.evaluations.items():
            key = str(result["task"]), str(result.get("split", "")), str(result.get("dataset", ""))
            tables[key].append((run.label, {**result, "file": file}))
    if not tables:
        return tag("p", "Nothing has been evaluated yet.")
    parts = []
    for (task, split, dataset), results in sorted(tables.items()):
        metrics, others = zip(*(_result(result) for _, result in results))
        labels = [label for label, _ in results]
        parts.append(
            tag(
                "div",
                tag("h3", f"{task.replace('_', ' ')}, {split} of {dataset}"),
                _side_by_side(labels, metrics),
                details("Conditions and counts", _side_by_side(labels, others)),
            )
        )
    note = tag("p", "In brackets, and as bars from 0 to 100: 95% bootstrap intervals.", class_="quiet")
    return joined([tag("div", *parts, class_="results"), note])


def _side_by_side(labels: Sequence[str], columns: Sequence[dict[str, Any]]) -> Html:
    """A row for each name that a column has, but for those that say nothing in any."""
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, NOTHING) for column in columns)] for name in names]
    told = [row for row in rows if any(value != NOTHING for value in row[1:])]
    return table(["", *labels], told, numbers=len(columns))


def _result(result: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics of one result, with their intervals, below what tells it from others; and everything else, by row."""
    selected, intervals = result.get("selected"), result.get("intervals", {})
    out = {"checkpoint": f"step {result.get('step')}" + (f", best {selected['select_by']}" if selected else "")}
    out |= {name: _plain(result.get(name)) if result.get(name) else NOTHING for name in _CONDITIONS}
    metrics = {name: x for name, x in result.items() if isinstance(x, dict) and name not in _NO_METRICS}
    values = {f"{name}/{metric}": value for name, own in metrics.items() for metric, value in own.items()}
    values |= {"accuracy": result["accuracy"]} if "accuracy" in result else {}
    for name, value in values.items():
        label = name.replace("_", " ").replace("/", ", ")
        out[label] = _measured(value, intervals.get(name), not name.endswith("_rank"))
    for kind, found in result.get("by_type", {}).items():
        out[f"of type {kind} ({found['count']})"] = _measured(found["accuracy"], found.get("interval"), True)
    shown = {"task", "split", "dataset", "step", "selected", "accuracy", *_CONDITIONS}
    rest = {}
    for name, value in result.items():
        if isinstance(value, dict) and set(value) == {"min", "max"}:
            value = " to ".join(dict.fromkeys((_plain(value["min"]), _plain(value["max"]))))
        if name not in shown and isinstance(value, (bool, int, float, str)):
            rest[name.replace("_", " ")] = _plain(value)
    return out, rest


def _measured(value: Any, bounds: Any, percent: bool) -> Any:
    if not isinstance(value, (int, float)):
        return NOTHING
    if not bounds or None in bounds:
        return f"{value:.1f}"
    text = f"{value:.1f} [{bounds[0]:.1f}, {bounds[1]:.1f}]"
    bar = charts.interval(value, *bounds) if percent else tag("span", class_="interval")
    return tag("span", text, bar, class_="measured")


def _plain(value: Any) -> str:
    if value in ("", None) or value is False:
        return "no" if value is False else NOTHING
    if value is True:
        return "yes"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
