"""What the workdir of a run holds, read without a device: no parameter is loaded, nothing is written."""

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from vlp_jax import best as best_lib
from vlp_jax import checkpoint, optimizer
from vlp_jax import config as config_lib
from vlp_jax import workdir as workdir_lib
from vlp_jax.analysis import curves as curves_lib
from vlp_jax.input import ledger as ledger_lib
from vlp_jax.telemetry import costs as costs_lib
from vlp_jax.telemetry.writers import METRICS_FILE
from vlp_jax.types import UserError


@dataclasses.dataclass
class Contents:
    """What there is of a run; what is not there is None or empty, and `missing` says so.

    Attributes:
      label: what tells it from the runs that it is compared with.
      config: of the newest checkpoint whose manifest is intact, before there is one of config.json.
      step: of that checkpoint.
      total_steps: that the run was planned for.
      best: step of its best checkpoint, and how it was chosen.
      parameters: name -> shape and dtype.
      trained: name -> whether the optimiser changes it.
      averaged: whether evaluation uses a moving average of them.
      totals: what it has cost.
      curves: what it logged.
      evaluations: name of the file -> what `evaluate` wrote.
      pictures: name -> PNG.
      bad_clips: last line of each clip in its ledgers.
      seen, bad: examples so far, of all its processes.
      origins: what it started from: tower, or '' for a whole run -> init.json's account; None where that is damaged.
      changed: when it last logged or saved something.
      missing: one sentence for each thing that is not there.
    """

    label: str
    folder: pathlib.Path
    config: Any = None
    step: int | None = None
    total_steps: int | None = None
    best: str = ""
    parameters: dict[str, jax.ShapeDtypeStruct] = dataclasses.field(default_factory=dict)
    trained: dict[str, bool] = dataclasses.field(default_factory=dict)
    averaged: bool = False
    totals: costs_lib.Totals | None = None
    curves: curves_lib.Curves | None = None
    evaluations: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    pictures: dict[str, bytes] = dataclasses.field(default_factory=dict)
    bad_clips: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    seen: int = 0
    bad: int = 0
    origins: dict[str, dict[str, Any]] | None = dataclasses.field(default_factory=dict)
    changed: datetime.datetime | None = None
    missing: list[str] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        """What the config calls it."""
        return self.config.name if self.config is not None else self.label

    @property
    def last_step(self) -> int | None:
        """The last one that it logged or saved."""
        logged = [int(steps[-1]) for steps, _ in self.curves.series.values()] if self.curves else []
        known = [*logged, *([] if self.step is None else [self.step])]
        return max(known, default=None)


def read(workdirs: Sequence[str], folders: Sequence[pathlib.Path]) -> list[Contents]:
    """Reads what each run has left.

    Args:
      workdirs: as the user names them.
      folders: where they are on this machine.

    Raises:
      UserError: one is given twice, or holds no run.
    """
    flags = [f"{flag}={text}" for flag, text in zip(["--workdir", *["--compare"] * len(workdirs)], workdirs)]
    resolved = [folder.resolve() for folder in folders]
    for number, folder in enumerate(resolved):
        if folder in resolved[:number]:
            first = flags[resolved.index(folder)]
            raise UserError(f"{flags[number]} beside {first}: {folder} is given twice; expected different runs")
    parts = (workdir_lib.CONFIG_FILE, METRICS_FILE, workdir_lib.CHECKPOINTS)
    for flag, folder in zip(flags, folders, strict=True):
        if not any((folder / name).exists() for name in parts):
            why = f"holds none of {', '.join(parts)}" if folder.is_dir() else "there is no such folder"
            raise UserError(f"{flag}: {why}; expected the workdir of a training run")
    texts = [text.rstrip("/") for text in workdirs]
    last = [text.rpartition("/")[2] for text in texts]
    labels = last if len(set(last)) == len(last) else texts
    return [_read(folder, label) for folder, label in zip(folders, labels, strict=True)]


def _read(folder: pathlib.Path, label: str) -> Contents:
    found = Contents(label, folder)
    _read_checkpoints(found)
    file = folder / workdir_lib.CONFIG_FILE
    if found.step is None and file.is_file():
        _read_config(found, file.read_text())
    if found.parameters and found.config is not None:
        found.trained = optimizer.trained_mask(found.config, found.parameters)
    _read_curves(found)
    _read_evaluations(found)
    for path in sorted(folder.glob("ledger*.jsonl")):
        try:
            clips, seen, bad = ledger_lib.read(path)
        except UserError as error:
            found.missing.append(f"no bad clips: {error}")
            continue
        found.bad_clips += clips
        found.seen, found.bad = found.seen + seen, found.bad + bad
    _read_origins(found)
    return found


def _read_config(found: Contents, text: str) -> None:
    try:
        found.config = config_lib.from_json(text)
    except UserError as error:  # of another version: all else of the run can be read
        found.missing.append(f"no config, nor what is frozen: {error}")


def _read_checkpoints(found: Contents) -> None:
    times = []
    for name in (workdir_lib.CHECKPOINTS, workdir_lib.BEST):
        folder = found.folder / name
        if not folder.is_dir():
            if name == workdir_lib.CHECKPOINTS:
                found.missing.append("no checkpoint yet: no parameters, and what it has cost is known by its log alone")
            continue
        checkpoints = checkpoint.Checkpointer(folder, keep=1, asynchronous=False)
        try:
            step, leaves = checkpoints.leaves()
            metadata = checkpoints.read_metadata(step)
        except UserError as error:
            found.missing.append(f"no intact checkpoint in {name}/: {error}")
            continue
        finally:
            checkpoints.close()
        times.append(max(path.stat().st_mtime for path in folder.iterdir()))
        if found.step is None:
            _read_config(found, json.dumps(metadata["config"]))
            found.step, found.total_steps = metadata.get("step", step), metadata.get("total_steps")
            of_params = [path for path in leaves if path.startswith("params/")]
            found.parameters = {path.removeprefix("params/"): leaves[path] for path in of_params}
            found.averaged = any(path.startswith("ema/") for path in leaves)
            found.totals = costs_lib.Totals(**metadata["costs"]) if "costs" in metadata else None
        if name == workdir_lib.BEST and found.config is not None:
            found.best = f"step {metadata['step']}, {best_lib.describe(metadata)}"
    if (metrics := found.folder / METRICS_FILE).is_file():
        times.append(metrics.stat().st_mtime)
    found.changed = datetime.datetime.fromtimestamp(max(times)).astimezone() if times else None


def _read_curves(found: Contents) -> None:
    if not (found.folder / METRICS_FILE).is_file():
        found.missing.append(f"no curves: there is no {METRICS_FILE}")
        return
    try:
        found.curves = curves_lib.read_curves(found.folder)[0]
    except UserError as error:
        found.missing.append(f"no curves: {error}")
        return
    if not found.curves.series:
        found.curves = None
        found.missing.append(f"no curves: {METRICS_FILE} has no line yet")


def _read_evaluations(found: Contents) -> None:
    folder = found.folder / "evaluation"
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text())
        except ValueError as error:
            found.missing.append(f"evaluation/{path.name} is damaged ({error}); evaluate again")
            continue
        if not isinstance(result, dict) or "task" not in result:
            found.missing.append(f"evaluation/{path.name} is no result of vlp_jax.evaluate: left out")
        elif odd := _odd(result):
            found.missing.append(f"evaluation/{path.name} is damaged ({odd}); evaluate again")
        else:
            found.evaluations[path.name] = result
    found.pictures = {path.stem: path.read_bytes() for path in sorted(folder.glob("*.png"))}
    if not found.evaluations:
        found.missing.append("no evaluation: `python -m vlp_jax.evaluate --workdir ...` makes one")


def _odd(result: dict[str, Any]) -> str:
    """Which of the parts of a result that have a form of their own has another one, and which; '' for none."""
    selected, intervals, by_type = result.get("selected"), result.get("intervals", {}), result.get("by_type", {})
    is_bound = lambda x: x is None or isinstance(x, (int, float))
    is_interval = lambda x: x is None or (isinstance(x, list) and len(x) == 2 and all(map(is_bound, x)))
    is_row = lambda x: isinstance(x, dict) and {"accuracy", "count"} <= x.keys() and is_interval(x.get("interval"))
    good = {
        "selected": not selected or (isinstance(selected, dict) and "select_by" in selected),
        "intervals": isinstance(intervals, dict) and all(map(is_interval, intervals.values())),
        "by_type": isinstance(by_type, dict) and all(map(is_row, by_type.values())),
    }
    return ", ".join(f"its {name} is {str(result[name])[:80]}" for name in good if not good[name])


def _read_origins(found: Contents) -> None:
    file = found.folder / workdir_lib.INIT
    if not file.is_file():
        return
    try:
        account = json.loads(file.read_text())
        origins = {"": account} if "parameters" in account else account
        whole = all(
            "source" in own and all({"origin", "shape", "origin_shape"} <= x.keys() for x in own["parameters"].values())
            for own in origins.values()
        )
        if not whole:
            raise ValueError("it lacks source, origin or shapes")
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # no JSON, or of another form
        found.origins = None
        found.missing.append(f"what it started from: {file.name} is damaged ({error})")
        return
    found.origins = origins
