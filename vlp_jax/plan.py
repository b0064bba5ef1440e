"""Plans a run before a chip is rented: `python -m vlp_jax.plan --config configs/smaug.py:large --topology v5e:16x16`.

Compiles the run's real training step for devices that need not be there, and prints what each of them has to hold,
what it computes and sends, how long a step takes at best, and what the whole run costs. Exits with status 1 where it
does not fit. `--search` tries batches, remat policies and meshes and ranks them; `--json` ends with one JSON object.
"""

import json
import os
import pathlib
import sys
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from vlp_jax import config as config_lib
from vlp_jax import launch, meshes, validation
from vlp_jax.input import mixture as mixture_lib
from vlp_jax.input import tokenizer as tokenizer_lib
from vlp_jax.planning import program, report, topology
from vlp_jax.types import UserError

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Config file, with an argument after a colon: configs/smaug.py:tiny.")
flags.DEFINE_string(
    "topology", None, "Devices, such as v5e:16x16, 'v5e:16x16 x2', h200:8, cpu:8; by default the named mesh's."
)
flags.DEFINE_integer(
    "clips",
    None,
    "Clips of the data set, for the length of the run; where it is here, its own number.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "vocabulary",
    None,
    "Pieces of the tokenizer; the tokenizer's own where it is here, else BERT's.",
    lower_bound=program.Vocabulary.first_word_id + 1,
)
flags.DEFINE_bool("search", False, "Try batches, remat policies and meshes, and rank them by clips per second.")
flags.DEFINE_bool("json", False, "End with one JSON object.")
flags.mark_flag_as_required("config")

_BERT = 30_522
_NAMED: list[str] = []  # the name that --config.mesh was given, before it was replaced by sizes


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: every argument is a --flag")
    config = FLAGS.config
    where = FLAGS.topology or (meshes.find(_NAMED[-1]).topology if _NAMED else None)
    if where is None:
        raise UserError("expected --topology=KIND:SHAPE, such as v5e:16x16, or a named mesh, --config.mesh=v5e_256")
    validate(config)
    place = topology.find(where)
    vocabulary, said = vocabulary_of(config)
    print(f"{config.name} on {len(place.devices)} x {place.chip.label if place.chip else 'CPU'} ({place.name}); {said}")
    if FLAGS.search:
        sys.exit(0 if report.search(config, place, vocabulary, clips_of(config), FLAGS.json) else 1)
    steps = [program.compile_step(config, place, kind, vocabulary) for kind in program.kinds_of(config)]
    for step in steps:
        print(report.table(step, place))
    fits = all(step.fits for step in steps)
    result = report.summary(config, place, steps, clips_of(config))
    if fits:
        print(f"FITS; {result['text']}")
    else:
        batch = report.largest_batch(config, place, vocabulary)
        print(f"DOES NOT FIT; the first that does when the batch is halved, all else equal: {batch or 'none'}")
        result["largest_batch"] = batch
    if FLAGS.json:
        result["flops_error"] = program.flops_error(config, steps[0].kind, vocabulary)
        print(json.dumps({key: value for key, value in result.items() if key != "text"}))
    if not fits:
        sys.exit(1)


def validate(config: Any) -> None:
    """As training does, but for what only the data could tell."""
    if not config.input.path and not config.mixture:
        config_lib.update(config, {"input.path": "not here"})
    validation.validate(config)
    if config.task.kind != "pretrain":
        raise UserError(f"plans are of pre-training, config.task.kind = {config.task.kind!r}")


def vocabulary_of(config: Any) -> tuple[int, str]:
    """Pieces of the tokenizer, and where that number is from."""
    if FLAGS.vocabulary:
        return FLAGS.vocabulary, f"{FLAGS.vocabulary:,} pieces, as given"
    path = pathlib.Path(config.input.tokenizer or "/nowhere")
    if path.is_file():
        found = tokenizer_lib.open_tokenizer(path, config.input.max_text_tokens, config.input.lowercase)
        return found.vocab_size, f"{found.vocab_size:,} pieces in {path}"
    return _BERT, f"{_BERT:,} pieces, as BERT's (no tokenizer here; --vocabulary sets it)"


def clips_of(config: Any) -> int | None:
    """Clips of the run's data: given, or those of the data set where it is here."""
    if FLAGS.clips:
        return FLAGS.clips
    paths = [own.path for own in config_lib.training_inputs(config).values()]
    if not all(path and os.path.exists(path) for path in paths):
        return None
    return len(mixture_lib.open_mixture(config))


def cli() -> None:
    """Entry point: a UserError becomes one message and exit status 2."""
    if "JAX_PLATFORMS" not in os.environ:  # which jax has read by now
        jax.config.update("jax_platforms", "cpu")
    _NAMED.extend(meshes.names(sys.argv))
    launch.run_config_app(main)


if __name__ == "__main__":
    cli()
