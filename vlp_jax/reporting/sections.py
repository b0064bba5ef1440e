"""The sections of a report: each makes HTML of what one run holds, beside those that it is compared with."""

import collections
import datetime
import itertools
import math
from collections.abc import Sequence
from typing import Any

from vlp_jax import config as config_lib
from vlp_jax.analysis import curves as curves_lib
from vlp_jax.input import ledger as ledger_lib
from vlp_jax.reporting import charts, evaluations
from vlp_jax.reporting.contents import Contents
from vlp_jax.reporting.html import NOTHING, Html, details, joined, picture, table, tag
from vlp_jax.telemetry import costs as costs_lib
from vlp_jax.text import duration
from vlp_jax.types import UserError

_CLIPS = 50  # bad ones listed
_NOISY = ("losses", "accuracy", "throughput")  # groups of curves that are averaged


def header(runs: Sequence[Contents], now: datetime.datetime) -> Html:
    """The run's name, step, time and cost; and what is missing."""
    run, parts = runs[0], []
    parts.append(tag("h1", title(run)))
    when = f"last changed {run.changed:%Y-%m-%d %H:%M %Z}, " if run.changed else ""
    with_others = f", compared with {', '.join(other.label for other in runs[1:])}" if runs[1:] else ""
    parts.append(tag("p", f"{run.folder}: {when}report of {now:%Y-%m-%d %H:%M %Z}{with_others}", class_="quiet"))
    for other in runs:
        if other.totals:
            parts.append(tag("p", costs_lib.summary(_called(other, runs), other.totals), class_="cost"))
    if run.best:
        parts.append(tag("p", f"Best checkpoint: {run.best}."))
    for other in runs:
        if other.missing:
            listed = tag("ul", *(tag("li", text) for text in other.missing))
            parts.append(tag("div", f"Not there in {other.label}:", listed, class_="missing"))
    return joined(parts)


def title(run: Contents) -> str:
    """Name of the run and how far it has come."""
    if run.last_step is None:
        return f"{run.name}, no step yet"
    of = ""
    if run.total_steps:
        ended = run.last_step >= run.total_steps
        of = f" of {run.total_steps}" + ("" if ended else ", in progress or interrupted")
    elif run.step is None:
        of = ", nothing saved yet"
    return f"{run.name}, step {run.last_step}{of}"


def cost_ledger(runs: Sequence[Contents]) -> Html:
    """What the runs have cost, a column each; of a run without a checkpoint what its log says."""
    rows: dict[str, list[Any]] = collections.defaultdict(lambda: [NOTHING] * len(runs))
    for column, run in enumerate(runs):
        for name, value in _costs(run).items():
            rows[name][column] = value
    if not rows:
        return tag("p", "Nothing is known of its costs yet.")
    note = (
        "FLOPs are those of the model as written, forward and backward; MFU is the share of the devices' peak while "
        "steps run; wall time counts from the first step on, with compilation, evaluation and checkpoints."
    )
    body = table([""] + [run.label for run in runs], ([name, *row] for name, row in rows.items()), numbers=len(runs))
    return joined([body, tag("p", note, class_="quiet")])


def _costs(run: Contents) -> dict[str, str]:
    if run.totals is None:
        logged = {name: values[-1] for name, (_, values) in run.curves.series.items()} if run.curves else {}
        forms = {"flops": "{:.3g}", "device_hours": "{:.3g}", "examples": "{:,.0f}"}
        labels = {"flops": "model FLOPs", "device_hours": "device-hours", "examples": "examples"}
        return {labels[name]: forms[name].format(logged[name]) for name in forms if name in logged}
    t, share = run.totals, lambda part, whole: f"{part / whole:.1%}" if whole else NOTHING
    out = {"model FLOPs": f"{t.flops:.3g}"}
    if t.examples:
        out["model FLOPs an example"] = f"{t.flops / t.examples:.3g}"
    for kind, seconds in t.device_seconds.items():
        out[f"{kind}-hours"] = f"{seconds / 3600:.3g}"
    out["wall time"] = duration(t.seconds)
    out["MFU"] = f"{t.mfu:.1%}" if t.mfu is not None else NOTHING
    out["examples"] = f"{t.examples:,}"
    out["examples a second of wall time"] = f"{t.examples / t.seconds:.3g}" if t.seconds else NOTHING
    out["waiting for data"] = share(t.waited_seconds, t.seconds)
    return out


def curves(runs: Sequence[Contents], x: str) -> Html:
    """One chart for each thing that was logged, with a line for each run."""
    lines = {number: run.curves for number, run in enumerate(runs) if run.curves is not None}
    if not lines:
        return tag("p", "No run has logged anything yet.")
    parts = [charts.legend([run.label for run in runs])] if runs[1:] else []
    note = "As logged; of losses of more than 50 points faint, and bold their moving average over a fiftieth of them. "
    parts.append(tag("p", note, "Beside each name: the last value logged.", class_="quiet"))
    places: dict[int, dict[str, Any]] = {}  # run -> name -> where its points lie on the x axis
    for number, run in lines.items():
        try:
            places[number] = {name: run.along(x, steps) for name, (steps, _) in run.series.items()}
        except UserError as error:  # the other runs can be drawn
            parts.append(tag("div", f"{runs[number].label} is not drawn: {error}", class_="missing"))
    for group, names in curves_lib.groups([lines[number] for number in places]).items():
        drawn = []
        for name in names:
            shown, last = [], []
            for number, run in lines.items():
                if name not in run.series:
                    last.append(NOTHING)
                    continue
                _, values = run.series[name]
                last.append(charts.short(values[-1]) if math.isfinite(values[-1]) else str(values[-1]))
                if number not in places:
                    continue
                at, weight = places[number][name], curves_lib.weight_for(len(values)) if group in _NOISY else 0
                average = curves_lib.smooth(values, weight)
                shown.append(charts.Line(number, at, average, values) if weight else charts.Line(number, at, values))
            drawn.append(charts.figure(charts.chart(shown, curves_lib.X_AXES[x], name), name, " | ".join(last)))
        parts += [tag("h3", group.capitalize()), tag("div", *drawn, class_="charts")]
    return joined(parts)


def pictures(runs: Sequence[Contents]) -> Html:
    """Every picture beside the evaluations."""
    shown = []
    for run in runs:
        for name, png in run.pictures.items():
            text = name.replace("_", " ") + (f" ({run.label})" if runs[1:] else "")
            shown.append(tag("figure", tag("figcaption", text), picture(png, text)))
    if not shown:
        how = "`python -m vlp_jax.evaluate --workdir ... --task reconstruction` makes one."
        return tag("p", f"There is no picture in evaluation/; {how}")
    return tag("div", *shown, class_="pictures")


def config(runs: Sequence[Contents]) -> Html:
    """What differs between the runs, what differs from the defaults, and, on request, every knob of the first run."""
    run, parts = runs[0], []
    values = [config_lib.leaves(other.config) if other.config is not None else {} for other in runs]
    if runs[1:]:
        keys = list(dict.fromkeys(key for own in values for key in own))
        rows = [[key, *(_knob(own, key) for own in values)] for key in keys if len({_knob(o, key) for o in values}) > 1]
        parts.append(tag("h3", "What differs between the runs"))
        head = ["config.", *(other.label for other in runs)]
        parts.append(table(head, rows) if rows else tag("p", "Nothing: their configs are equal."))
    if run.config is None:
        return joined([*parts, tag("p", f"{run.label} has no config.")])
    defaults = config_lib.leaves(config_lib.defaults())
    changed = {key for key in values[0] if key not in defaults or defaults[key] != values[0][key]}
    rows = [[key, _knob(values[0], key), _knob(defaults, key)] for key in values[0] if key in changed]
    parts.append(tag("h3", f"What {run.name} sets: {len(changed)} of {len(values[0])} knobs"))
    parts.append(table(["config.", "value", "default"], rows))
    group = lambda key: ".".join(key.split(".")[:-1][:2]) or "of the run"
    ordered = sorted(values[0], key=lambda key: (group(key) != "of the run", group(key), key))
    every = []
    for name, own in itertools.groupby(ordered, group):
        rows = [[key, _knob(values[0], key)] for key in own]
        marked = [number for number, row in enumerate(rows) if row[0] in changed]
        every += [tag("h3", name), table(["config.", "value"], rows, marked=marked)]
    parts.append(details("Every knob, by group; those that are set are highlighted", *every))
    return joined(parts)


def _knob(values: dict[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else NOTHING


def parameters(runs: Sequence[Contents]) -> Html:
    """Parameters by module: of the first run in full, beside the counts of the others."""
    run, parts = runs[0], []
    rows: list[list[Any]]
    if runs[1:]:
        counts = [_by_module(other) for other in runs]
        names = list(dict.fromkeys(name for own in counts for name in own))
        of = lambda own, name: f"{sum(own[name].values()):,}" if name in own else NOTHING
        rows = [[name, *(of(own, name) for own in counts)] for name in names]
        rows.append(["all", *(f"{sum(sum(x.values()) for x in own.values()):,}" for own in counts)])
        parts.append(table(["module", *(other.label for other in runs)], rows, numbers=len(runs)))
    if not run.parameters:
        return joined([*parts, tag("p", f"{run.label} has no checkpoint that would say which parameters it has.")])
    total = sum(x.size for x in run.parameters.values())
    rows = []
    for name, own in {**_by_module(run), "all": {key: x.size for key, x in run.parameters.items()}}.items():
        size, train = sum(own.values()), sum(size for key, size in own.items() if run.trained.get(key))
        state = "trained" if train == size else "frozen" if not train else f"{train:,} trained, the others frozen"
        state = state if run.trained else NOTHING
        nbytes = sum(size * run.parameters[key].dtype.itemsize for key, size in own.items())
        part = tag("span", f"{size / total:.1%}", charts.share(size / total), class_="measured")
        rows.append([name, state, len(own), f"{size:,}", part, _bytes(nbytes)])
    head = ["module", "", "arrays", "parameters", "share", "size"]
    parts.append(table(head, rows, numbers=4))
    if run.averaged:
        parts.append(tag("p", "Evaluation uses the moving average of these parameters.", class_="quiet"))
    listed = [[key, str(list(x.shape)), str(x.dtype), f"{x.size:,}"] for key, x in run.parameters.items()]
    parts.append(details("Every array", table(["name", "shape", "type", "parameters"], listed, numbers=1)))
    return joined(parts)


def _by_module(run: Contents) -> dict[str, dict[str, int]]:
    """Module -> its parameters' names -> sizes; of a task's model those of its recipe one by one."""
    out: dict[str, dict[str, int]] = {}
    for name, x in run.parameters.items():
        parts = name.split("/")
        module = "/".join(parts[: 2 if parts[0] == "recipe" else 1])
        out.setdefault(module, {})[name] = x.size
    return out


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def bad_clips(runs: Sequence[Contents]) -> Html:
    """The ledgers: how many clips, why, and the first of them."""
    parts = []
    for run in runs:
        if runs[1:]:
            parts.append(tag("h3", run.label))
        if not run.bad_clips:
            parts.append(tag("p", "No clip was bad."))
            continue
        share = f", {run.bad:,} of {run.seen:,} examples ({run.bad / run.seen:.2%})" if run.seen else ""
        parts.append(tag("p", f"{len(run.bad_clips):,} bad clips{share}."))
        kinds: dict[str, list[dict[str, Any]]] = {}
        for clip in run.bad_clips:
            kinds.setdefault(ledger_lib.kind_of(clip["error"]), []).append(clip)
        ordered = sorted(kinds.values(), key=len, reverse=True)
        rows = [[clips[0]["error"], f"{len(clips):,}", f"{sum(c['count'] for c in clips):,}"] for clips in ordered]
        parts.append(table(["reason (the first of its kind)", "clips", "examples"], rows, numbers=2))
        first = run.bad_clips[:_CLIPS]
        rows = [[c["clip_id"], c["origin"], c["source"], c["error"], f"{c['count']:,}"] for c in first]
        more = f", the first {_CLIPS} of {len(run.bad_clips):,}" if len(run.bad_clips) > _CLIPS else ""
        whole = table(["clip", "where", "source", "reason", "examples"], rows, numbers=1)
        parts.append(details(f"Which ones{more}", whole))
    return joined(parts)


def origins(runs: Sequence[Contents]) -> Html:
    """What the runs started from, and what of it was taken, changed or created."""
    parts = []
    for run in runs:
        if runs[1:]:
            parts.append(tag("h3", run.label))
        if not run.origins:
            known = "It started from random parameters." if run.origins is not None else "Its account is damaged."
            parts.append(tag("p", known))
        for tower, account in (run.origins or {}).items():
            step = f", step {account['step']}" if account.get("step") is not None else ""
            of = f"{tower}: " if tower else ""
            parts.append(tag("p", f"{of}from {account['source']}{step}"))
            kinds = collections.Counter(_how(x) for x in account["parameters"].values())
            taken: list[list[Any]] = [[how, count] for how, count in kinds.most_common()]
            if left := account.get("left_out"):
                taken.append(["left out (only there)", len(left)])
            parts.append(table(["", "arrays"], taken, numbers=1))
            listed = ([name, x["origin"] or NOTHING, _how(x)] for name, x in account["parameters"].items())
            parts.append(details("Every array", table(["name", "origin", ""], listed)))
    return joined(parts)


def _how(parameter: dict[str, Any]) -> str:
    return parameter.get("how") or ("as it was" if parameter["shape"] == parameter["origin_shape"] else "another shape")


def every(runs: Sequence[Contents], x: str) -> list[tuple[str, Html]]:
    """All sections with their titles, in order."""
    return [
        ("Evaluation", evaluations.section(runs)),
        ("Curves", curves(runs, x)),
        ("Pictures", pictures(runs)),
        ("Costs", cost_ledger(runs)),
        ("Parameters", parameters(runs)),
        ("Start", origins(runs)),
        ("Bad clips", bad_clips(runs)),
        ("Config", config(runs)),
    ]


def _called(run: Contents, runs: Sequence[Contents]) -> str:
    return run.name if len(runs) == 1 else f"{run.name} ({run.label})"
