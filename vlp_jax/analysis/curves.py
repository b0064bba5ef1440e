"""What runs logged while they trained: `read_curves` of their metrics.jsonl, `draw_curves` of any of it together."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vlp_jax import checkpoint
from vlp_jax import workdir as workdir_lib
from vlp_jax.analysis import drawing
from vlp_jax.analysis.loading import folder_of
from vlp_jax.input.sources import near
from vlp_jax.telemetry.writers import METRICS_FILE, read_metrics
from vlp_jax.types import UserError

X_AXES = {
    "step": "step",
    "examples": "examples",
    "seconds": "seconds",
    "flops": "model FLOPs",
    "device_hours": "device-hours",
}
THROUGHPUT = ("examples_per_second", "data_wait_share", "mfu")
COSTS = ("flops", "device_hours", "examples")
_OPTIMISATION = ("learning_rate", "grad_norm", "temperature", "bad_clips")
_LABELS = {
    "examples_per_second": "examples / s",
    "data_wait_share": "share of time that waits for data",
    "mfu": "MFU",
    "flops": "model FLOPs",
    "device_hours": "device-hours",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "bad_clips": "bad clips",
}
_DASHES = ("-", "--", ":", "-.")


@dataclasses.dataclass(frozen=True)
class Curves:
    """What one run logged.

    Attributes:
      workdir: its folder.
      name: what legends call it; no other run read with it has the same.
      series: name -> `(steps, values)`, int and float `[N]`, steps rising; not every step has every name.
      devices: how many trained it, in the mean over time; None without a checkpoint that says so.
    """

    workdir: pathlib.Path
    name: str
    series: dict[str, tuple[np.ndarray, np.ndarray]]
    devices: float | None

    def along(self, x: str, steps: Any) -> np.ndarray:
        """What had been spent when some steps were done, float `[N]`: linear between lines of metrics, nan after them.

        Args:
          x: one of X_AXES. Seconds, which are not logged, are device-hours over `devices`: of a run that went on with
            another number of devices, its curve is in part stretched and in part squeezed. What a run that it began
            from had spent (`config.init_from`) is not in it.
          steps: int `[N]`.

        Raises:
          UserError: no such axis, or the run has not logged it.
        """
        if x not in X_AXES:
            raise UserError(f"x = {x!r}: expected one of {', '.join(X_AXES)}{near(x, list(X_AXES))}")
        steps = np.asarray(steps, np.float64)
        if x == "step":
            return steps
        if x == "seconds" and self.devices is None:
            raise UserError(
                f"x = 'seconds': {self.workdir} holds no checkpoint that says how many devices trained it; "
                "take x = 'device_hours'"
            )
        logged = "device_hours" if x == "seconds" else x
        if logged not in self.series:
            raise UserError(
                f"x = {x!r}: {self.workdir / METRICS_FILE} has no {logged}; it has {', '.join(self.series)}"
            )
        at, spent = self.series[logged]
        found = np.interp(steps, np.append(0, at), np.append(0.0, spent), right=np.nan)
        return found * 3600 / self.devices if x == "seconds" and self.devices else found


def read_curves(workdirs: Sequence[str | os.PathLike] | str | os.PathLike) -> list[Curves]:
    """Reads the metrics of one or several runs, finished or not.

    A torn last line is left out. Where a run was resumed and has logged a step again, the later line counts, and what
    had been logged of later steps before it is forgotten.

    Args:
      workdirs: folders, or addresses such as gs://BUCKET/runs/base, which are fetched.

    Raises:
      UserError: no workdir, one twice, or one without metrics.
    """
    given = [workdirs] if isinstance(workdirs, (str, os.PathLike)) else list(workdirs)
    if not given:
        raise UserError("read_curves([]): expected one workdir or more")
    folders = [folder_of(workdir) for workdir in given]
    return [
        Curves(folder, name, _series(read_metrics(folder)), _devices(folder))
        for folder, name in zip(folders, _names(folders))
    ]


def groups(runs: Sequence[Curves]) -> dict[str, list[str]]:
    """What some runs logged, sorted: losses, accuracy, validation, throughput, costs, optimisation; only what is there.

    The losses begin with `loss`, the sum that training lowers.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.series))
    found: dict[str, list[str]] = {
        **{"losses": [], "accuracy": [], "validation": []},
        "throughput": [name for name in THROUGHPUT if name in names],
        "costs": [name for name in COSTS if name in names],
        "optimisation": [name for name in _OPTIMISATION if name in names],
    }
    for name in names:
        if "/" in name:
            if not name.startswith("examples/"):  # how many, of each part of a mixture
                found["validation"].append(name)
        elif name not in (*THROUGHPUT, *COSTS, *_OPTIMISATION):
            found["accuracy" if "accuracy" in name or "recall" in name else "losses"].append(name)
    found["losses"].sort(key=lambda name: name != "loss")
    return {group: names for group, names in found.items() if names}


def smooth(values: Any, weight: float) -> np.ndarray:
    """Exponential moving average corrected for its start, float `[N]`, as Adam's moments are (Kingma and Ba, 2015).

    Args:
      values: `[N]`; one that is not finite leaves the average as it was.
      weight: of the past, in [0, 1); 0 returns the values.

    Raises:
      UserError: a weight outside of [0, 1).
    """
    if not 0 <= weight < 1:
        raise UserError(f"smoothing = {weight}: expected the weight of the past, from 0 (none) to below 1")
    values = np.asarray(values, np.float64)
    if not weight:
        return values
    out, mean, total = np.full(values.shape, np.nan), 0.0, 0.0
    for i, value in enumerate(values):
        if math.isfinite(value):
            mean = weight * mean + (1 - weight) * value
            total = weight * total + (1 - weight)
        if total:
            out[i] = mean / total
    return out


def weight_for(points: int) -> float:
    """The weight of the past with which `smooth` averages over about a fiftieth of a curve; 0 for up to 50 points,
    which a moving average would only drag behind."""
    return max(0.0, 1 - 50 / points) if points else 0.0


def draw_curves(
    runs: Sequence[Curves], names: Sequence[str] | None = None, *, x: str = "step", smoothing: float | None = None
) -> Figure:
    """Draws one panel for each name, with a line for each run that logged it, in one colour throughout.

    Args:
      names: what to draw; the losses by default. `groups` says what there is.
      x: one of X_AXES.
      smoothing: weight of the past in `smooth`, by default `weight_for` each curve; what was logged stands behind,
        faint. 0 draws that alone.

    Raises:
      UserError: no run, a name that no run logged, or as `Curves.along`.
    """
    if not runs:
        raise UserError("draw_curves([]): expected what read_curves returned")
    if names is None:
        names = groups(runs).get("losses", [])
    known = list(dict.fromkeys(name for run in runs for name in run.series))
    for name in names:
        if name not in known:
            raise UserError(f"{name!r} was logged by none of the runs; they have {', '.join(known)}{near(name, known)}")
    if not names:
        raise UserError(f"nothing to draw: give names, of {', '.join(known)}")
    columns = 2 if len(names) == 4 else min(3, len(names))
    rows = math.ceil(len(names) / columns)
    extra = 0.3 * math.ceil(len(runs) / 3) if len(runs) > 1 else 0.0  # inches for the legend
    figure = Figure(figsize=(max(3.5 * columns, 6), 2.7 * rows + 0.4 + extra), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axis, name in zip(axes, names):
        for number, run in enumerate(runs):
            if name not in run.series:
                continue
            steps, values = run.series[name]
            at, look = run.along(x, steps), run_style(number)
            # A single point makes no line.
            marker = "o" if len(steps) == 1 else None
            weight = weight_for(len(values)) if smoothing is None else smoothing
            if weight:
                axis.plot(at, values, **look, linewidth=1, alpha=0.3, marker=marker, markersize=3)
            axis.plot(at, smooth(values, weight), **look, linewidth=1.6, marker=marker, markersize=3)
        axis.set_title(_LABELS.get(name, name), fontsize=10)
        axis.set_xlabel(X_AXES[x], fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    averaged = any(len(axis.lines) > len(runs) for axis in axes)
    how = "; bold: moving average, faint: as logged" if averaged else ""
    figure.suptitle((runs[0].name if len(runs) == 1 else f"{len(runs)} runs") + how, fontsize=11)
    if len(runs) > 1:
        add_legend(figure, [run.name for run in runs])
    return figure


def run_style(number: int) -> dict[str, Any]:
    """Colour and dashes of a run by its number among those that are compared."""
    dashes = _DASHES[number // len(drawing.SERIES) % len(_DASHES)]
    return {"color": drawing.SERIES[number % len(drawing.SERIES)], "linestyle": dashes}


def add_legend(figure: Figure, names: Sequence[str]) -> None:
    """A legend of runs below the axes, whichever of them the panels show."""
    handles = [Line2D([], [], **run_style(number), linewidth=2) for number in range(len(names))]
    figure.legend(handles, names, loc="outside lower center", ncols=min(3, len(names)), frameon=False, fontsize=9)


def _names(folders: Sequence[pathlib.Path]) -> list[str]:
    """The last part of each path, or as many as tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    for twice in {p for p in parts if parts.count(p) > 1}:
        raise UserError(f"workdir {pathlib.Path(*twice)} is given twice: expected different runs")
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names


def _series(lines: list[dict[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found: dict[str, tuple[list[int], list[float]]] = {}
    for line in lines:
        # One step may have a line of losses and one of validation.
        for name, (steps, values) in found.items():
            while steps and (steps[-1] > line["step"] or (steps[-1] == line["step"] and name in line)):
                steps.pop()
                values.pop()
        for name, value in line.items():
            if name != "step":
                steps, values = found.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(value)
    found = {name: points for name, points in found.items() if points[0]}
    return {name: (np.array(steps), np.array(values, np.float64)) for name, (steps, values) in found.items()}


def _devices(folder: pathlib.Path) -> float | None:
    if not (folder / workdir_lib.CHECKPOINTS).is_dir():
        return None
    checkpoints = checkpoint.Checkpointer(folder / workdir_lib.CHECKPOINTS, keep=1, asynchronous=False)
    try:
        spent = checkpoints.read_metadata().get("costs") if checkpoints.latest() is not None else None
    finally:
        checkpoints.close()
    return sum(spent["device_seconds"].values()) / spent["seconds"] if spent and spent["seconds"] else None
