"""What quality costs: results of several runs against what was spent to train them, and which none of them beats."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vlp_jax.analysis import drawing
from vlp_jax.analysis.curves import X_AXES, Curves, add_legend, read_curves, run_style
from vlp_jax.evaluation import evaluators
from vlp_jax.input.sources import near
from vlp_jax.types import UserError
from vlp_jax.workdir import CONFIG_FILE

COSTS = ("flops", "device_hours", "seconds", "examples")
_CONDITIONS = ("frames", "ensemble", "rerank", "ablate", "dataset", "selected")  # in which two results may differ
_PLAIN = {"rerank": 0, "ablate": ""}

# One workdir, or those of a run's stages in their order.
Stages = str | os.PathLike | Sequence[str | os.PathLike]


@dataclasses.dataclass(frozen=True)
class CostPoint:
    """A result of a run.

    Attributes:
      run: its number among those that are compared.
      name: its name.
      step: of the checkpoint that was evaluated.
      cost: of training up to there, all stages that were given.
      value: the metric.
      low, high: its 95% interval; nan where none was drawn.
      whole: False where the run began from another (`config.init_from`) whose cost is not in it.
      file: the result.
    """

    run: int
    name: str
    step: int
    cost: float
    value: float
    low: float
    high: float
    whole: bool
    file: pathlib.Path


def read_points(
    runs: Sequence[Stages] | str | os.PathLike,
    *,
    metric: str = "text_to_video/R@1",
    cost: str = "flops",
    task: str = "retrieval",
    split: str = "test",
    where: Mapping[str, Any] | None = None,
) -> list[CostPoint]:
    """The results of some runs on one split, with what they cost.

    Args:
      runs: workdirs, or for a run in stages the list of its stages' workdirs, whose costs add up; the last one has the
        result.
      metric: of the result, dictionaries inside it by /.
      cost: flops, device_hours, seconds or examples.
      task, split: of the results in `WORKDIR/evaluation`, which `vlp_jax.evaluate` writes.
      where: what else the result says, e.g. `{"frames": 12}`; without it, results that are not reranked and of which
        nothing was ablated.

    Returns:
      A point for each checkpoint that was evaluated, by run and step.

    Raises:
      UserError: no run, a run without such a result, two results of one checkpoint under other conditions, results of
        different queries, a metric, cost or field of `where` that is not there, or costs that were not logged up to the
        checkpoint.
    """
    if cost not in COSTS:
        raise UserError(f"cost = {cost!r}: expected one of {', '.join(COSTS)}")
    if isinstance(runs, (str, os.PathLike)):
        runs = [runs]
    if not runs:
        raise UserError("read_points([]): expected one workdir or more")
    stages = [[run] if isinstance(run, (str, os.PathLike)) else list(run) for run in runs]
    # An earlier stage may serve several runs.
    ends = read_curves([run[-1] for run in stages])
    points: list[CostPoint] = []
    queries: tuple[pathlib.Path, set[str]] | None = None
    for number, (run, end) in enumerate(zip(stages, ends)):
        before = [read_curves(stage)[0] for stage in run[:-1]]
        spent = sum(_last(stage, cost) for stage in before)
        whole = not _init_from(before[0] if before else end)
        for step, (file, result) in sorted(_results(end.workdir, task, split, {**_PLAIN, **(where or {})}).items()):
            asked = {row["query_id"] for row in result["per_query"]}
            queries = queries or (file, asked)
            if asked != queries[1]:
                raise UserError(
                    f"{file} and {queries[0]} are of different queries, {len(asked)} and {len(queries[1])}: results "
                    "that are compared must be of the same data"
                )
            own = float(end.along(cost, [step])[0])
            if np.isnan(own):
                raise UserError(f"{end.workdir} has logged no {cost} up to step {step}, which {file.name} is of")
            low, high = result["intervals"].get(metric, (np.nan, np.nan))
            points.append(
                CostPoint(number, end.name, step, spent + own, _metric(result, metric, file), low, high, whole, file)
            )
    return points


def pareto(costs: Any, values: Any, *, higher_is_better: bool = True) -> np.ndarray:
    """Which points no other beats: none is as good for less, or better for as much; bool `[N]`.

    Args:
      costs, values: `[N]`; a point that has a nan neither beats nor stands on the frontier.
    """
    costs, values = np.asarray(costs, np.float64), np.asarray(values, np.float64)
    values = values if higher_is_better else -values
    as_good = (costs[None] <= costs[:, None]) & (values[None] >= values[:, None])
    better = (costs[None] < costs[:, None]) | (values[None] > values[:, None])
    return ~(as_good & better).any(1) & ~np.isnan(costs) & ~np.isnan(values)


def draw_frontier(
    points: Sequence[CostPoint],
    *,
    metric: str = "text_to_video/R@1",
    cost: str = "flops",
) -> Figure:
    """Draws the points, 95% intervals as bars, and as a step line what can be had for a cost.

    Args:
      points: of `read_points`, of the same metric, which is in percent or a rank, and the same cost.
    """
    if not points:
        raise UserError("draw_frontier([]): expected what read_points returned")
    lower = metric.endswith("_rank")
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axis = figure.subplots()
    x, y = np.array([p.cost for p in points]), np.array([p.value for p in points])
    front = pareto(x, y, higher_is_better=not lower)
    if not front.any():
        raise UserError(f"draw_frontier: every point has a cost or a {metric} that is nan: expected a number or more")
    order = np.argsort(x[front], kind="stable")
    best = (np.append(x[front][order], np.nanmax(x)), np.append(y[front][order], y[front][order][-1]))
    axis.plot(*best, drawstyle="steps-post", color=drawing.GREY, linewidth=1.2, zorder=1)
    for point, wins in zip(points, front):
        # An interval of resamples need not hold the value itself.
        reach = np.nan_to_num(np.maximum([[point.value - point.low], [point.high - point.value]], 0))
        color = run_style(point.run)["color"]
        axis.errorbar(
            point.cost, point.value, yerr=reach, fmt="o", color=color, markerfacecolor=color if wins else "white"
        )
        mark = "" if point.whole else "*"
        axis.annotate(f"{point.step}{mark}", (point.cost, point.value), (6, 4), textcoords="offset points", fontsize=8)
    axis.margins(x=0.12)
    if np.nanmin(x) > 0 and np.nanmax(x) > 1.5 * np.nanmin(x):
        axis.set_xscale("log")
    axis.set_xlabel(f"cost of training, {X_AXES[cost]}")
    axis.set_ylabel(metric + (" (lower is better)" if lower else ", %"))
    notes = ["filled: no other point is as good for less; number: step; bars: 95% intervals"]
    if not all(point.whole for point in points):
        notes.append("*: without the cost of the run that it began from")
    figure.suptitle(f"{metric} against {X_AXES[cost]} of training", fontsize=11)
    axis.set_title("\n".join(notes), fontsize=9)
    axis.grid(alpha=0.3)
    names = {point.run: point.name for point in points}
    add_legend(figure, [names.get(run, "") for run in range(max(names) + 1)])
    return figure


def _results(
    workdir: pathlib.Path, task: str, split: str, where: Mapping[str, Any]
) -> dict[int, tuple[pathlib.Path, dict[str, Any]]]:
    """Step -> the file and the result of a run that fit; fields that a result lacks fit any value."""
    found: dict[int, tuple[pathlib.Path, dict[str, Any]]] = {}
    there, fields = [], set(_CONDITIONS)
    for file in sorted((workdir / "evaluation").glob("*.json")):
        try:
            result = json.loads(file.read_bytes())
            step = int(result["step"])
            kind = (result["task"], result["split"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: expected a result of vlp_jax.evaluate ({error!r}); make it anew") from None
        there.append(file.name)
        fields |= result.keys()
        if kind != (task, split) or any(result.get(key, value) != value for key, value in where.items()):
            continue
        if step in found:
            other, before = found[step]
            differ = {key: (before.get(key), result.get(key)) for key in _CONDITIONS}
            said = ", ".join(f"{key}: {a!r} and {b!r}" for key, (a, b) in differ.items() if a != b)
            raise UserError(
                f"{other} and {file.name} are both of {task} on split {split!r} at step {step}; they differ in "
                f"{said or 'nothing that they say'}: choose one, e.g. by where={{'frames': 4}}, or remove one"
            )
        found[step] = file, result
    for key in where:
        if there and key not in fields:
            raise UserError(
                f"where = {{{key!r}: {where[key]!r}}}: expected a field of a result, one of "
                f"{', '.join(sorted(fields))}{near(key, sorted(fields))}"
            )
    if not found:
        raise UserError(
            f"{workdir / 'evaluation'} holds no result of {task} on split {split!r} with {dict(where)}"
            + (f", only {', '.join(there)}" if there else "")
            + f"; make one: python -m vlp_jax.evaluate --workdir {workdir} --task {task} --split {split}"
        )
    return found


def _metric(result: dict[str, Any], metric: str, file: pathlib.Path) -> float:
    try:
        return evaluators.metric(result, metric)
    except (KeyError, TypeError):
        known = [
            *(name for name, value in result.items() if isinstance(value, float)),
            *(f"{n}/{m}" for n, inner in result.items() if isinstance(inner, dict) for m in inner if n != "intervals"),
        ]
        raise UserError(f"metric = {metric!r}: {file} has {', '.join(known)}") from None


def _last(stage: Curves, cost: str) -> float:
    """All that a stage has spent."""
    steps = max(steps[-1] for steps, _ in stage.series.values())
    spent = float(stage.along(cost, [steps])[0])
    if np.isnan(spent):
        raise UserError(f"{stage.workdir} has logged no {cost} up to its last step, {steps}")
    return spent


def _init_from(run: Curves) -> str:
    file = run.workdir / CONFIG_FILE
    return json.loads(file.read_bytes()).get("init_from", "") if file.is_file() else ""
