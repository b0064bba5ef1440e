"""Evaluates a checkpoint: `python -m vlp_jax.evaluate --workdir DIR [--checkpoint best]`.

The model and its sizes come from the checkpoint's own config, the tokenizer and the answers from the workdir; flags
choose what to evaluate, and on what.
"""

import hashlib
import json
import os
import pathlib
import urllib.parse
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

from vlp_jax import best, distributed, inherit, launch, runs, validation
from vlp_jax import config as config_lib
from vlp_jax.analysis import loading, pictures
from vlp_jax.evaluation import evaluators
from vlp_jax.files import write_atomically
from vlp_jax.input import pipeline, sources, splits
from vlp_jax.types import UserError

TASKS = (*evaluators.KINDS, "reconstruction")

# What --set may change besides config.evaluation: how records are found and read; the rest is the model's own.
_MODELS_OWN = (
    *("input.image_size", "input.max_text_tokens", "input.tokenizer", "input.lowercase", "input.frames"),
    *("input.features.width", "input.features.regions", "input.features.boxes"),
)

# Flags for values of the config, which --set then does not take.
_FLAG_OF = {
    "evaluation.split": "split",
    "input.path": "input_path",
    "evaluation.rerank": "rerank",
    "evaluation.frames": "frames",
    "evaluation.ensemble": "ensemble",
    "input.ablate": "ablate",
    "evaluation.bootstrap": "bootstrap",
    "evaluation.batch_size": "batch_size",
}
_OF_TRAINING = (
    *("input.split", "input.crop_scale", "input.flip", "input.cache_gib", "input.max_bad_share"),
    *("evaluation.every_steps", "evaluation.validation_split", "evaluation.select_by"),
)
# Flags that some tasks alone read.
_READ_BY = {
    "rerank": ("retrieval",),
    "clips": ("reconstruction",),
    "bootstrap": tuple(evaluators.KINDS),
    "batch_size": tuple(evaluators.KINDS),
}

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "workdir", None, "Directory of a training run, or its address such as gs://BUCKET/NAME.", required=True
)
flags.DEFINE_string(
    "checkpoint", None, "Step to evaluate, or best: the one that a metric chose; the newest intact one by default."
)
flags.DEFINE_string("task", None, f"One of {', '.join(TASKS)}; the run's own by default, retrieval of pre-training.")
flags.DEFINE_string("split", None, "Split to evaluate on; config.evaluation.split by default.")
flags.DEFINE_string("input_path", None, "Dataset directory, table or shards; config.input.path of the run by default.")
flags.DEFINE_integer("rerank", None, "Candidates reranked by the matching head; config.evaluation.rerank by default.")
flags.DEFINE_integer("frames", None, "Frames of a clip; config.evaluation.frames by default, 0 as in training.")
flags.DEFINE_string("ensemble", None, "How several frames are matched; config.evaluation.ensemble by default.")
flags.DEFINE_string("ablate", None, "What is taken away: video, text or order; config.input.ablate by default.")
flags.DEFINE_integer("bootstrap", None, "Resamples behind intervals; config.evaluation.bootstrap by default.")
flags.DEFINE_integer("batch_size", None, "Clips a step; config.evaluation.batch_size by default.")
flags.DEFINE_multi_string("set", [], "KEY=VALUE of config.input or config.evaluation, e.g. input.caption_column=text.")
flags.DEFINE_integer("clips", 4, "Clips in the reconstruction picture.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: every argument is a --flag")
    if FLAGS.task is not None and FLAGS.task not in TASKS:
        raise UserError(f"--task={FLAGS.task}: expected one of {', '.join(TASKS)}")
    if FLAGS.clips < 1:
        raise UserError(f"--clips={FLAGS.clips}: expected 1 or more")
    step, best = launch.chosen_checkpoint(FLAGS.checkpoint)
    say = launch.join_processes()
    if FLAGS.task == "reconstruction" and jax.process_count() > 1:
        raise UserError(
            f"--task=reconstruction draws a few clips in one process, this job has {jax.process_count()}: run it "
            "alone, with --distributed=off"
        )
    with launch.open_workdir(FLAGS.workdir, say, only="evaluation/", step=step) as (workdir, _):
        evaluate(workdir, step, best)


def evaluate(workdir: pathlib.Path, step: int | None, best: bool) -> None:
    """Runs the task of the flags, of the checkpoint of a step, of the best one, or by default the newest."""
    run = runs.open_run(workdir, step, best=best, ensemble=FLAGS.ensemble)
    task = FLAGS.task or evaluators.kind_of(run.config.task.kind)
    history = run.metadata["trained_on"]
    for name, tasks in _READ_BY.items():
        if FLAGS[name].present and task not in tasks:
            raise UserError(
                f"--{name}={FLAGS[name].value} with --task={task}, which does not read it; {', '.join(tasks)} do"
            )
    given = {key: FLAGS[name].value for key, name in _FLAG_OF.items() if FLAGS[name].value is not None}
    # The checkpoint is chosen already, perhaps by a metric of another task.
    config_lib.update(run.config, {**given, "evaluation.select_by": "", **settings(run.config, FLAGS.set)})
    if FLAGS.ensemble not in (None, "concat") and not matches(run.config, task):
        raise UserError(
            f"--ensemble={FLAGS.ensemble} with --task={task}: an ensemble is of scores of the matching head, "
            "which multiple choice and reranked retrieval have alone; give --rerank, or --ensemble=concat"
        )
    if task in ("retrieval", "reconstruction"):
        run = runs.recipe_alone(run)
    validation.validate(run.config)
    out = workdir / "evaluation"
    out.mkdir(exist_ok=True)
    path = out / stem(run.config, task, run.step, best, FLAGS.input_path, FLAGS.set)
    if task == "reconstruction":
        run_reconstruction(run, workdir, path)
    else:
        run_evaluator(run, task, history, path)


def settings(config: Any, pairs: list[str]) -> dict[str, Any]:
    """Parses what --set is given: dotted key -> value of the knob's type.

    Raises:
      UserError: a key that does not exist, that is the model's own or training's, or that has a flag; or a value of
        another type.
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"--set={pair}: expected KEY=VALUE, such as input.caption_column=text")
        config_lib.check_key(config, key)
        if key in _FLAG_OF:
            raise UserError(f"--set={pair}: use --{_FLAG_OF[key]}={text}")
        if key in _OF_TRAINING:
            instead = "; --split says what to evaluate on" if key.endswith("split") else ""
            raise UserError(f"--set={pair}: {key} has a part in training alone{instead}")
        if key in _MODELS_OWN or not key.startswith(("input.", "evaluation.")):
            raise UserError(
                f"--set={pair}: {key} is the checkpoint's own; what may be set is input.* (but "
                f"{', '.join(_MODELS_OWN)}) and evaluation.*"
            )
        if key in out:
            raise UserError(f"--set gives {key} twice: {out[key]!r} and {text!r}")
        out[key] = launch.check_value(f"--set={key}", text, config_lib.leaves(config)[key])
    return out


def matches(config: Any, task: str) -> bool:
    """Whether the matching head, and with it `evaluation.ensemble`, has a part in a result."""
    return task == "multiple_choice" or (task == "retrieval" and config.evaluation.rerank > 0)


def stem(config: Any, task: str, step: int, is_best: bool, input_path: str | None, pairs: list[str]) -> str:
    """Name of a result's file, without ending; results under other conditions have other names."""
    e, quote = config.evaluation, lambda text: urllib.parse.quote(text, safe="")
    parts = [task, quote(e.split), str(step)]
    parts += ["best"] if is_best else []
    if input_path is not None:
        path = quote(os.path.abspath(input_path))
        parts.append(
            path if len(path) <= 100 else f"{path[-88:]}{hashlib.blake2b(path.encode(), digest_size=6).hexdigest()}"
        )
    parts += [f"rerank{e.rerank}"] if task == "retrieval" and e.rerank else []
    parts += [f"frames{e.frames}"] if e.frames else []
    parts += [e.ensemble] if e.ensemble != "concat" and matches(config, task) else []
    parts += [f"without-{config.input.ablate}"] if config.input.ablate else []
    parts += sorted(quote(pair) for pair in pairs)
    name = "_".join(parts)
    if len(name) > 200:  # file systems end at 255
        name = f"{name[:180]}_{hashlib.blake2b(name.encode(), digest_size=6).hexdigest()}"
    return name


def training(config: Any, history: list[dict[str, Any]]) -> str:
    """What the model has seen of the data set `config.input.path`: `zero-shot`, or which of its splits it trained on.

    A data set is known by its path and, wherever it has been moved or copied to, by `inherit.content_of`.

    Args:
      history: `inherit.trained_on` of the run.
    """
    same = same_data(config)
    seen = [f"{item['stage']} on its split {item['split']}" for item in history if same(item)]
    return " and ".join(dict.fromkeys(seen)) or "zero-shot"


def same_data(config: Any) -> Callable[[dict[str, Any]], bool]:
    """Whether an item of `inherit.trained_on` is of the data set `config.input.path`."""
    here, content = os.path.realpath(config.input.path), inherit.content_of(config.input.path)
    return lambda item: item["path"] == here or bool(content and item.get("content") == content)


def chosen_on(run: runs.Run, source: sources.Source) -> bool:
    """Whether the checkpoint was chosen by clips of `source`, which `run.config.input` and its evaluation describe."""
    selected = run.metadata.get("selected")
    if selected is None or not _its_data(run):
        return False
    c, split = run.config, selected["validation_split"]
    if splits.may_meet(c.input.kind, split, c.evaluation.split):
        return True
    return bool(sources.shared_clips(source, sources.open_source(c.input, split)))


def _its_data(run: runs.Run) -> bool:
    """Whether `run.config.input`, which flags may have changed, is the data set that the run named."""
    saved = run.metadata["config"]["input"]["path"]
    own = [item for item in run.metadata["trained_on"] if item["path"] == os.path.realpath(saved)]
    return os.path.realpath(saved) == os.path.realpath(run.config.input.path) or any(map(same_data(run.config), own))


def run_evaluator(run: runs.Run, task: str, history: list[dict[str, Any]], out: pathlib.Path) -> None:
    """Prints the table of a task's metrics and writes it, with a row for every query, to `out`.json."""
    c, e = run.config, run.config.evaluation
    source = sources.open_source(c.input, e.split)
    pipeline.probe_source(config_lib.evaluated_input(c), source, "--frames" if e.frames else "config.input.frames")
    module, evaluator = evaluators.make(
        task, run.setup.graph, run.setup.abstract.params, c, source, run.tokenizer, run.setup.mesh, run.answers
    )
    result = evaluator.run(run.params)
    selected = run.metadata.get("selected")
    how = training(c, history)
    title = f"{c.name}, step {run.step}"
    title += f" ({best.describe(run.metadata)})" if selected else ""
    title += f", {e.split} of {c.input.path}, {task.replace('_', ' ')}: {how}"
    title += f", top {e.rerank} reranked" if task == "retrieval" and e.rerank else ""
    title += f", {e.frames} frames" if e.frames else ""
    ensemble = e.ensemble if matches(c, task) else "concat"
    title += f", {ensemble} of the frames' scores" if ensemble != "concat" else ""
    title += f", without {c.input.ablate}" if c.input.ablate else ""
    trained = config_lib.from_json(json.dumps(run.metadata["config"]))
    part = _its_data(run) and splits.held_out_of_training(trained, e.split)
    title += ", a part of the training split" if part else ""
    chose = chosen_on(run, source)
    title += ", which chose the checkpoint: a flattering number" if chose else ""
    if not distributed.is_first():
        return
    print(module.table(result, title))
    details = {
        "task": task,
        "step": run.step,
        "selected": selected,
        "selected_on_this_split": chose,
        "split": e.split,
        "dataset": c.input.path,
        "training": how,
        "frames": e.frames or c.input.frames,
        "ensemble": ensemble,
        "ablate": c.input.ablate,
    }
    path = out.with_name(out.name + ".json")
    write_atomically(path, json.dumps({**details, **result}, indent=1).encode())
    print(f"every query: {path}")


def run_reconstruction(run: runs.Run, workdir: pathlib.Path, out: pathlib.Path) -> None:
    """Writes a picture of masked input, reconstruction and kept tokens to `out`.png."""
    loaded = loading.Loaded(workdir, run)
    pictures.check_decoder(loaded.model, run.config, "--task=reconstruction")
    clips = loaded.clips(min(FLAGS.clips, len(loaded.source())))
    figure = pictures.draw_reconstruction(loaded, clips, pictures.reconstruct(loaded, clips))
    path = out.with_name(out.name + ".png")
    figure.savefig(path, dpi=100)
    print(f"picture of {len(clips.captions)} clips: {path}")


def cli() -> None:
    """Entry point: a UserError becomes one message and exit status 2."""
    launch.use_huge_pages()
    launch.run_app(main)


if __name__ == "__main__":
    cli()
