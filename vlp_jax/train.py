"""Pre-trains or fine-tunes: `python -m vlp_jax.train --config configs/smaug.py:tiny --workdir DIR`.

Any field of the config can be set on the command line, e.g. `--config.optimizer.learning_rate=3e-4`. Killing the
process at any moment and running the same command again continues from the newest intact checkpoint.
"""

import dataclasses
import json
import math
import pathlib
import signal
import sys
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

from vlp_jax import best as best_lib
from vlp_jax import checkpoint, distributed, inherit, launch, optimizer, runs, sharding, validation
from vlp_jax import config as config_lib
from vlp_jax import state as state_lib
from vlp_jax import workdir as workdir_lib
from vlp_jax.evaluation import evaluators
from vlp_jax.files import write_atomically
from vlp_jax.input import ledger as ledger_lib
from vlp_jax.input import mixture as mixture_lib
from vlp_jax.input import pipeline, sources, splits
from vlp_jax.input import tokenizer as tokenizer_lib
from vlp_jax.pretrained import importing
from vlp_jax.telemetry import costs as costs_lib
from vlp_jax.telemetry import meters as meters_lib
from vlp_jax.telemetry import progress as progress_lib
from vlp_jax.telemetry import writers as writers_lib
from vlp_jax.types import UserError

_STOPPED, _FAILED = 1, 2  # votes of a process: a signal has come, too many clips are bad

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Config file, with an argument after a colon: configs/smaug.py:tiny.")
flags.DEFINE_string(
    "workdir",
    None,
    "Directory, or address such as gs://BUCKET/NAME, for checkpoints, metrics and the tokenizer.",
    required=True,
)
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: every argument is a --flag")
    say = launch.join_processes()
    given = config_flags.get_override_values(FLAGS["config"])
    with launch.open_workdir(FLAGS.workdir, say) as (workdir, mirror):
        status = train(FLAGS.config, workdir, given, say, mirror.notify if mirror else None)
    sys.exit(status)


def train(
    config: Any,
    workdir: pathlib.Path,
    given: Collection[str],
    say: Callable[[str], None],
    committed: Callable[[], None] | None = None,
) -> int:
    """Runs or continues one run; returns the exit status: 0, or 128 + the number of the signal that stopped it.

    Args:
      given: dotted keys of the config that the command line sets.
      say: prints a line, on the first process alone.
      committed: called after each commit of a checkpoint; given where each process has a workdir of its own.

    Raises:
      UserError: something in the config, the data or the workdir that the user can mend.
    """
    # -- Config, workdir, data -----------------------------------------------------------------------------------------
    first = distributed.is_first()
    saved = workdir_lib.saved_config(workdir)
    if config.init_model:
        say(inherit.model_config(config, given, saved))
    validation.validate(config)
    runs.set_precision(config)
    runs.check_kernel(config)
    stop = launch.StopSignal()
    mesh = sharding.make_mesh(config)
    sharding.check_batch(config, mesh)

    inherited = inherit.tokenizer_file(config) if config.init_from and saved is None else None
    tokenizer_file = workdir_lib.check(config, workdir, saved, inherited)
    mixture = mixture_lib.open_mixture(config)
    mixture_lib.check_validation(config, mixture)
    pipeline.probe(mixture)
    total_steps = config_lib.total_steps(config, len(mixture))
    records = {part.name or "input": len(part.source) for part in mixture.parts}
    tokenizer = tokenizer_lib.open_tokenizer(tokenizer_file, config.input.max_text_tokens, config.input.lowercase)
    answers = runs.open_answers(config)
    answer_file = None if answers is None else answers.serialized()
    if answer_file is not None and saved is not None:
        workdir_lib.check_answers(workdir, answer_file)

    # -- State, from the newest intact checkpoint where there is one ---------------------------------------------------
    run = state_lib.setup(config, tokenizer, mesh, total_steps, len(answers or ()))
    lock = workdir_lib.lock(workdir) if first else None
    if first:
        workdir_lib.prepare(config, workdir, tokenizer, answer_file)
    distributed.barrier("prepared")
    checkpoints = checkpoint.Checkpointer(
        workdir / workdir_lib.CHECKPOINTS,
        keep=config.checkpoint.keep,
        asynchronous=config.checkpoint.asynchronous,
        shared=committed is None,
        committed=committed,
    )
    step, meters, spent = 0, meters_lib.Meters(), None
    if checkpoints.latest() is not None:
        step, state, metadata = checkpoints.restore(run.abstract)
        check_plan(metadata, workdir, total_steps, records)
        history = inherit.trained_on(config, metadata["trained_on"])
        meters, spent = meters_lib.Meters(metadata["meters"]), metadata["costs"]
        say(f"continuing {workdir} from step {step} of {total_steps}")
    else:
        history = inherit.trained_on(config)
        with sharding.use_mesh(mesh):
            state = run.create()
            starts = {}
            if config.init_from:
                params, taken = inherit.parameters(config, state.params, answer_file)
                starts = {"": taken}
            else:
                params, starts = importing.towers(config, state.params)
            if starts:
                state = dataclasses.replace(
                    state, params=params, ema=None if state.ema is None else jax.tree.map(jnp.copy, params)
                )
                for taken in starts.values():
                    say(str(taken))
                # Of published weights, by the tower that they are of.
                listed = {name: taken.to_json() for name, taken in starts.items()}
                if first:
                    write_atomically(workdir / workdir_lib.INIT, json.dumps(listed.get("", listed), indent=1).encode())
        say(progress_lib.parameter_overview(run.abstract.params))
        say(optimizer.trained_summary(config, run.abstract.params))
    say(
        f"{config.name}: {total_steps} steps of {config.batch_size} examples, {len(mixture)} records in "
        f"{mixture.name}, mesh {dict(mesh.shape)} of {jax.devices()[0].device_kind}"
        + (f", {jax.process_count()} processes" if jax.process_count() > 1 else "")
    )

    # -- Loop ----------------------------------------------------------------------------------------------------------
    writers = writers_lib.Writers(workdir, enabled=first)
    writers.truncate_after(step)
    # Each process lists the clips that it has read.
    name = "ledger.jsonl" if first else f"ledger-{jax.process_index()}.jsonl"
    ledger = ledger_lib.Ledger(workdir / name, config.input.max_bad_share)
    evaluator: Any = None
    evaluate: Any = None
    if config.evaluation.every_steps:
        evaluate, evaluator = make_evaluator(config, run, tokenizer, answers)
        if splits.held_out_of_training(config, config.evaluation.validation_split):
            say(f"validation on {config.evaluation.validation_split}: a part of the training split, kept from training")
    best = best_lib.Best(workdir, config, shared=committed is None) if config.evaluation.select_by else None
    if best and best.metadata:
        check_plan(best.metadata, workdir, total_steps, records)
    step_at, masked_steps = state_lib.train_steps(run, total_steps), config_lib.masked_steps(config, total_steps)
    learning_rate = optimizer.schedule(config, total_steps)
    part_of = mixture.schedule(total_steps)
    progress = progress_lib.Progress(total_steps, step, config.batch_size, enabled=first)
    waiting = progress_lib.DataWait()
    flops_of = costs_lib.StepFlops(run, tokenizer, total_steps, len(answers or ()))
    kind, devices, peak, source = costs_lib.devices_of(config)
    say(f"{devices} x {kind}, {peak / 1e12:.4g} TFLOP/s each ({source})")
    costs = costs_lib.Costs(config.batch_size, peak=peak, kind=kind, devices=devices, saved=spent)
    rows = sharding.rows_of(mesh, config.batch_size)
    batches = pipeline.train_batches(
        config, mixture, tokenizer, start_step=step, stop_step=total_steps, own=rows.own, answers=answers
    )

    plan = {"total_steps": total_steps, "records": records, "trained_on": history, "config": config.to_dict()}

    saved = step

    def save(step):
        nonlocal saved
        saved = step
        writers.flush()  # first: no metrics up to a saved step may be lost, as they would not be written again
        checkpoints.save(step, state, {**plan, "meters": meters.pending, "costs": costs.to_json()})

    def report(done):
        """Reads the metrics of a finished step; called after the next one is dispatched, so that devices never idle."""
        if done is None:
            return
        step, metrics, item, counted = done
        metrics = jax.device_get(metrics)
        if not metrics["finite"]:
            save(step - 1)
            checkpoints.wait()
            raise not_finite(step, metrics, item, workdir)
        meters.add(metrics)
        costs.step(counted)
        if step % config.log_every == 0 or step == total_steps:
            means = {**meters.means(), "learning_rate": float(learning_rate(step - 1))}
            speed = progress.update(step, means, waiting.share())
            drawn = {"examples": step * config.batch_size}
            drawn |= {f"examples/{k}": n for k, n in mixture.examples(part_of[:step], config.batch_size).items()}
            bad = sum(distributed.gather(ledger.bad))
            writers.write(step, {**means, **drawn, "bad_clips": bad, **speed, **costs.scalars()})

    every = lambda steps: bool(steps) and (step % steps == 0 or step == total_steps)
    cut = cut_answers = outside = 0
    vote, failed = distributed.Vote(mesh), None
    try:
        with sharding.use_mesh(mesh):
            # Placed as the step's own output is: another placement would compile the step a second time.
            in_flight, good = None, jax.device_put(np.asarray(True), sharding.replicated(mesh))
            while step < total_steps and not vote.result:
                with waiting:
                    item = next(batches)
                costs.totals.waited_seconds += waiting.last
                try:
                    ledger.add(item)
                except UserError as error:
                    failed = error
                    if vote.alone:
                        break
                cut, cut_answers, outside = cut + item.cut, cut_answers + item.cut_answers, outside + item.outside
                # Copied while the devices run the step before. Once a step is not finite, `good` keeps every later one
                # from moving the state.
                batch = sharding.to_global(item.batch, mesh, rows)
                counted, new = flops_of(step < masked_steps, batch)
                state, metrics = step_at(step)(state, batch, good)
                vote.cast(_FAILED if failed else _STOPPED if stop.received else 0)
                if new:
                    costs.interrupt()  # it was compiled, while the step before it ran
                step, good = step + 1, metrics["finite"]
                report(in_flight)
                in_flight = (step, metrics, item, counted)
                progress.tick(step)
                if every(config.evaluation.every_steps) or every(config.checkpoint.every_steps):
                    report(in_flight)
                    in_flight = None
                    if evaluator and every(config.evaluation.every_steps):
                        result = evaluator.run(state.evaluated)
                        writers.write(step, evaluate.log_scalars(result, config.evaluation.validation_split))
                        if best:
                            value = evaluators.metric(result, config.evaluation.select_by)
                            if best.offer(step, value, state, plan):
                                say(f"step {step}: {config.evaluation.select_by} = {value:.4g}, the best so far")
                    if every(config.checkpoint.every_steps):
                        save(step)
                    costs.resume()
            report(in_flight)
            # Once more together: a process that fails at the run's last step has had no later one to say so.
            ended = max(distributed.gather(_FAILED if failed else vote.result))
            # By what was saved, not by what is listed: on a shared folder processes may see different listings.
            if step and ended and step != saved:
                save(step)
            checkpoints.wait()
            if failed:
                raise failed
            if ended == _FAILED:
                raise UserError("another process of this job stopped, and says why")
    finally:
        batches.close()
        writers.close()
        progress.finish()
        checkpoints.close()
        if best:
            best.close()
        stop.restore()
        if lock:
            lock.close()

    if step == total_steps:
        ledger.finish(lambda own: map(sum, zip(*distributed.gather(own))))
    said = distributed.gather(ledger.summary())
    for number, text in enumerate(said):
        say(text if len(said) == 1 else f"process {number}: {text}")
    cut, cut_answers, outside = map(sum, zip(*distributed.gather([cut, cut_answers, outside])))
    if cut:
        say(f"captions: {cut} of those seen were cut to config.input.max_text_tokens = {config.input.max_text_tokens}")
    if cut_answers:
        longest = config.task.max_answer_tokens
        say(f"answers: {cut_answers} of those seen were cut to config.task.max_answer_tokens = {longest}")
    if outside and answers is not None:
        decodes = config.task.kind == "question_answering" and config.task.head == "decoder"
        use = "the decoder learned them all the same" if decodes else "nothing was learned from these examples"
        say(f"answers: {outside} of those seen are not among the {len(answers)} of the list; {use}")
    if step < total_steps:
        why = stop.received or "stopped by another process"
        say(f"{why}: saved step {step} of {total_steps} in {workdir}; the same command continues from there")
        # As shells have it: a scheduler must not take the run for a finished one.
        return 128 + (signal.SIGINT if stop.received == "SIGINT" else signal.SIGTERM)
    say(f"done: {total_steps} steps, checkpoint and metrics in {workdir}")
    say(costs_lib.summary(config.name, costs.totals))
    if best and best.metadata:
        say(f"{workdir / workdir_lib.BEST}: step {best.metadata['step']}, {best_lib.describe(best.metadata)}")
    return 0


def make_evaluator(config: Any, run: state_lib.Setup, tokenizer: Any, answers: Any) -> tuple[Any, Any]:
    """The evaluator of the run's task on the validation split, for use during training, and its module."""
    source = sources.open_source(config.input, config.evaluation.validation_split)
    kind = evaluators.kind_of(config.task.kind)
    return evaluators.make(kind, run.graph, run.abstract.params, config, source, tokenizer, run.mesh, answers)


def check_plan(metadata: dict[str, Any], workdir: pathlib.Path, total_steps: int, records: dict[str, int]) -> None:
    """Refuses to continue a run whose length or data have changed since it saved `metadata`."""
    if metadata["total_steps"] != total_steps:
        raise UserError(
            f"the run in {workdir} was planned for {metadata['total_steps']} steps, this command gives {total_steps} "
            f"({records} records); continue with the same data and length, or use a new --workdir"
        )
    if metadata["records"] != records:
        raise UserError(
            f"the run in {workdir} trains on {metadata['records']} records, the data now holds {records}: the rest "
            "of the run would see other examples than planned; restore the data, or use a new --workdir"
        )


def not_finite(step: int, metrics: dict[str, Any], item: pipeline.HostBatch, workdir: pathlib.Path) -> UserError:
    """The message for a step whose loss or gradient is nan or inf; lists the batch's clips in a file.

    All processes call it together; `item` is this one's part of the batch.
    """
    bad = [f"{name} = {total}" for name, (total, _) in metrics["terms"].items() if not math.isfinite(total)]
    what = ", ".join(bad) if bad else f"the gradient norm = {metrics['grad_norm']} (all terms are finite)"
    path = workdir / f"not_finite_{step}.json"
    # With a tensor axis several processes have the same.
    clip_ids = list(dict.fromkeys(clip for own in distributed.gather(list(item.clip_ids)) for clip in own))
    if distributed.is_first():
        path.write_text(json.dumps({"step": step, "terms": bad, "clip_ids": clip_ids}, indent=1))
    return UserError(
        f"step {step} is not finite: {what}; examples {', '.join(clip_ids[:4])}, ... (all in {path}). "
        f"The state before it is saved as step {step - 1}. A lower config.optimizer.learning_rate or clip_norm may "
        "help, in a new --workdir: from the start, or from an earlier checkpoint by --config.init_from"
    )


def cli() -> None:
    """Entry point: a UserError becomes one message and exit status 2."""
    launch.use_huge_pages()
    launch.run_config_app(main)


if __name__ == "__main__":
    cli()
