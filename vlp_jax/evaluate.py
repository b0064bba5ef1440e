"""Evaluates a checkpoint: `python -m vlp_jax.evaluate --workdir DIR --task retrieval`.

The model and its sizes come from the checkpoint's own config, the tokenizer from the workdir; flags choose what to
evaluate on.
"""

import json
import os
import pathlib
import urllib.parse

import jax
import numpy as np
from absl import flags

from vlp_jax import config as config_lib
from vlp_jax import launch, sharding, validation
from vlp_jax import state as state_lib
from vlp_jax.analysis import pictures
from vlp_jax.evaluation import retrieval
from vlp_jax.files import write_atomically
from vlp_jax.input import pipeline, sources
from vlp_jax.recipes import recipe
from vlp_jax.types import UserError

TASKS = ("retrieval", "reconstruction")

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Directory of a training run.", required=True)
flags.DEFINE_integer("checkpoint", None, "Step to evaluate; the newest intact one by default.")
flags.DEFINE_string("task", "retrieval", f"One of {', '.join(TASKS)}.")
flags.DEFINE_string("split", None, "Split to evaluate on; config.evaluation.split by default.")
flags.DEFINE_string("input_path", None, "Dataset directory, table or shards; config.input.path of the run by default.")
flags.DEFINE_integer("rerank", None, "Candidates reranked by the matching head; config.evaluation.rerank by default.")
flags.DEFINE_integer("batch_size", None, "Clips a step; config.evaluation.batch_size by default.")
flags.DEFINE_integer("clips", 4, "Clips in the reconstruction picture.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: every argument is a --flag")
    if FLAGS.task not in TASKS:
        raise UserError(f"--task={FLAGS.task}: expected one of {', '.join(TASKS)}")
    if FLAGS.clips < 1:
        raise UserError(f"--clips={FLAGS.clips}: expected 1 or more")
    run = launch.open_run(pathlib.Path(FLAGS.workdir), FLAGS.checkpoint)
    changes = {
        "evaluation.split": FLAGS.split,
        "input.path": FLAGS.input_path,
        "evaluation.rerank": FLAGS.rerank,
        "evaluation.batch_size": FLAGS.batch_size,
    }
    config_lib.update(run.config, {key: value for key, value in changes.items() if value is not None})
    validation.validate(run.config)
    out = pathlib.Path(FLAGS.workdir) / "evaluation"
    out.mkdir(exist_ok=True)
    stem = f"{FLAGS.task}_{urllib.parse.quote(run.config.evaluation.split, safe='')}_{run.step}"
    if FLAGS.input_path is not None:
        stem += f"_{urllib.parse.quote(os.path.abspath(FLAGS.input_path), safe='')[-100:]}"
    if FLAGS.task == "retrieval" and run.config.evaluation.rerank:
        stem += f"_rerank{run.config.evaluation.rerank}"
    {"retrieval": run_retrieval, "reconstruction": run_reconstruction}[FLAGS.task](run, out / stem)


def run_retrieval(run, out: pathlib.Path) -> None:
    """Prints the table of both directions and writes it, with the rank of every query, to `out`.json."""
    c = run.config
    source = sources.open_source(c.input, c.evaluation.split)
    pipeline.probe_source(c.input, source)
    evaluator = retrieval.Retrieval(
        run.setup.graph, run.setup.abstract.params, c, source, run.tokenizer, run.setup.mesh, rerank=c.evaluation.rerank
    )
    result = evaluator.run(run.params)
    title = f"{c.name}, step {run.step}, {c.evaluation.split} of {c.input.path}, zero-shot retrieval"
    if c.evaluation.rerank:
        title += f", top {c.evaluation.rerank} reranked"
    print(retrieval.table(result, title))
    path = out.with_name(out.name + ".json")
    details = {"step": run.step, "split": c.evaluation.split, "dataset": c.input.path, **result}
    write_atomically(path, json.dumps(details, indent=1).encode())
    print(f"per-query ranks: {path}")


def run_reconstruction(run, out: pathlib.Path) -> None:
    """Writes a picture of masked input, reconstruction and kept tokens to `out`.png."""
    c, setup = run.config, run.setup
    source = sources.open_source(c.input, c.evaluation.split)
    ways = setup.mesh.size // setup.mesh.shape["tensor"]
    size = -(-min(FLAGS.clips, len(source)) // ways) * ways
    item = next(iter(pipeline.evaluation_batches(c, source, run.tokenizer, batch_size=size)))
    model = state_lib.merge(setup, run.params)
    recipe.require(model, recipe.Reconstructor, "--task=reconstruction")
    if not c.loss.mvm:
        raise UserError(
            f"--task=reconstruction needs a pixel decoder, but {c.name} was trained with config.loss.mvm = 0"
        )
    with sharding.use_mesh(setup.mesh):
        rebuild = jax.jit(
            lambda params, batch: state_lib.merge(setup, params).reconstruct(batch, jax.random.key(c.seed))
        )
        result = jax.device_get(rebuild(run.params, sharding.to_global(item.batch, setup.mesh)))
    real = np.flatnonzero(item.batch.valid)[: FLAGS.clips]
    if not len(real):
        raise UserError(f"none of the first {size} clips of split {c.evaluation.split!r} decoded: {item.errors[0]}")
    result = jax.tree.map(lambda x: x[real], result)
    figure = pictures.reconstruction(c, item.batch.video[real], result, [item.captions[i] for i in real])
    path = out.with_name(out.name + ".png")
    figure.savefig(path, dpi=100)
    print(f"picture of {len(real)} clips: {path}")


def cli() -> None:
    """Entry point: a UserError becomes one message and exit status 2."""
    launch.use_huge_pages()
    launch.run_app(main)


if __name__ == "__main__":
    cli()
