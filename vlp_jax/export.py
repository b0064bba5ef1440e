"""Writes a run's text encoder as a Hugging Face folder: `python -m vlp_jax.export --workdir DIR --out DIR`.

`transformers` loads it with equal outputs. It is the text encoder alone, as it embeds captions: the fusion's layers
look at a video between their own, which no text model does.
"""

import json
import pathlib
from typing import Any

from absl import flags
from safetensors import numpy as safetensors_numpy

from vlp_jax import checkpoint, launch, sharding
from vlp_jax import config as config_lib
from vlp_jax.files import write_atomically
from vlp_jax.input.sentence_piece import SentencePiece
from vlp_jax.models import layers
from vlp_jax.pretrained import importing
from vlp_jax.pretrained.rules import give
from vlp_jax.types import UserError
from vlp_jax.warm_start import RECIPE

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: every argument is a --flag")
    if FLAGS.family not in importing.TEXT:
        raise UserError(f"--family={FLAGS.family}: expected one of {', '.join(importing.TEXT)}")
    step, best = launch.chosen_checkpoint(FLAGS.checkpoint)
    workdir, out = pathlib.Path(FLAGS.workdir), pathlib.Path(FLAGS.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out}: something is there already; name a new folder")
    run = launch.open_run(workdir, step, best=best)
    text(run.config, run.params, FLAGS.family, out)
    kept = "; its tokenizer is a SentencePiece model, which is not copied"
    if (name := run.tokenizer.file_name) != SentencePiece.file_name:
        write_atomically(out / name, run.tokenizer.serialized())
        kept = f", and {name}"
    print(f"the text encoder of {run.config.name}, step {run.step}, as {FLAGS.family} in {out}{kept}")


def text(config: Any, params: Any, family: str, out: pathlib.Path) -> None:
    """Writes model.safetensors and config.json of the text encoder in `params`, a recipe's or a task's.

    Raises:
      UserError: the run has no text encoder, or one that the family does not have: with norms before its blocks, or
        with adapters.
    """
    kind = importing.TEXT[family]
    own = {name.removeprefix(RECIPE): x for name, x in checkpoint.by_path(params).items()}
    if "text/embedding" not in own:
        raise UserError(f"{config.name} has no text encoder: every weight of its loss that reads text is 0")
    values = config_lib.leaves(config)
    for knob, only in kind.knobs.items():
        if values[knob] != only:
            raise UserError(
                f"config.{knob} = {values[knob]!r} of {config.name}: in {family} it is {only!r}, and only a run with "
                "that can be exported"
            )
    if layers.adapter_width(config, "text"):
        raise UserError(
            f"config.model.adapters.reduction = {config.model.adapters.reduction} of {config.name}, whose text encoder "
            f"has adapters: {family} has none, and only a run without them there can be exported"
        )
    rules = [*kind.embedding, *kind.layer]
    theirs = give(rules, {rule.ours: sharding.fetch(own[rule.ours]) for rule in rules})
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "config.json", json.dumps(kind.config_of(config, theirs), indent=1).encode())
    safetensors_numpy.save_file(theirs, out / "model.safetensors", metadata={"format": "pt"})


def cli() -> None:
    """Entry point: a UserError becomes one message and exit status 2."""
    flags.DEFINE_string("workdir", None, "Directory of a training run.", required=True)
    flags.DEFINE_string("out", None, "Folder to write, new or empty.", required=True)
    flags.DEFINE_string("family", "bert", f"One of {', '.join(importing.TEXT)}: whose names the tensors get.")
    flags.DEFINE_string("checkpoint", None, "Step, or best; the newest intact one by default.")
    launch.run_app(main)


if __name__ == "__main__":
    cli()
