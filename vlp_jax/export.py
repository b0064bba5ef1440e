"""Writes a run's encoders for other programs: `python -m vlp_jax.export --workdir DIR --out DIR`.

By default the text encoder as a Hugging Face folder, which `transformers` loads with equal outputs: the encoder alone,
as it embeds captions, since the fusion's layers look at a video between their own, which no text model does. Of vision
(`--tower vision`) it is the encoder, of a frame, or of a clip where it has VideoMAE's or TimeSformer's form, without
decoder and projection. `--format stablehlo` writes both towers, embeddings and all, as programs that JAX runs without
this package (vlp_jax/exporting/stablehlo.py).
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from vlp_jax import config as config_lib
from vlp_jax import launch, runs, sharding, trees
from vlp_jax.analysis.loading import Loaded
from vlp_jax.exporting import stablehlo, tensors
from vlp_jax.files import write_atomically
from vlp_jax.input.sentence_piece import SentencePiece
from vlp_jax.models import layers
from vlp_jax.pretrained import importing
from vlp_jax.pretrained.family import Family
from vlp_jax.pretrained.rules import Rule, give
from vlp_jax.types import UserError
from vlp_jax.warm_start import RECIPE

FLAGS = flags.FLAGS

FAMILIES = {
    "text": tuple(importing.TEXT),
    "vision": ("vit", *(name for name in importing.VISION if name != "vit")),
}  # by tower, the default first
# Of a video encoder: knob -> the one value with which it computes what those of transformers do, where the family does
# not say another.
_PLAIN = {
    "model.vision.tubelet": 1,
    "model.vision.attention": "frame",
    "model.vision.temporal_attention": "none",
    "model.pruning.layers": (),
}
_OF_CLIPS = ("videomae", "timesformer")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: every argument is a --flag")
    if FLAGS.format == "stablehlo":
        for flag in ("tower", "family"):
            if FLAGS[flag].present:
                raise UserError(
                    f"--{flag}={FLAGS[flag].value} with --format=stablehlo: both towers are written, by the names of "
                    f"this package; leave out --{flag}, or take --format=safetensors"
                )
    families = FAMILIES[FLAGS.tower]
    family = FLAGS.family or families[0]
    if family not in families:
        raise UserError(f"--family={family} of --tower={FLAGS.tower}: expected one of {', '.join(families)}")
    step, best = launch.chosen_checkpoint(FLAGS.checkpoint)
    workdir, out = pathlib.Path(FLAGS.workdir), pathlib.Path(FLAGS.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out}: something is there already; name a new folder")
    run = runs.open_run(workdir, step, best=best)
    if FLAGS.format == "stablehlo":
        stablehlo.write(Loaded(workdir, runs.recipe_alone(run)), out)
        print(
            f"embed_video and embed_text of {run.config.name}, step {run.step}, in {out}; try python {out}/example.py"
        )
        return
    if FLAGS.tower == "vision":
        vision(run.config, run.params, family, out)
        print(f"the video encoder of {run.config.name}, step {run.step}, as {family} in {out}")
        return
    t = run.tokenizer
    if family == "roberta" and t.pad_id != 1:
        raise UserError(
            f"--family=roberta, whose positions are numbered from padding's id 1 on, but that of this run's tokenizer "
            f"is {t.pad_id}: choose --family=bert"
        )
    ids = {"pad_token_id": t.pad_id, "bos_token_id": t.cls_id, "eos_token_id": t.sep_id}
    text(run.config, run.params, family, out, ids)
    kept = "; its tokenizer is a SentencePiece model, which is not copied"
    if (name := run.tokenizer.file_name) != SentencePiece.file_name:
        write_atomically(out / name, run.tokenizer.serialized())
        kept = f", and {name}"
    print(f"the text encoder of {run.config.name}, step {run.step}, as {family} in {out}{kept}")


def text(config: Any, params: Any, family: str, out: pathlib.Path, ids: Mapping[str, int] | None = None) -> None:
    """Writes model.safetensors and config.json of the text encoder in `params`, a recipe's or a task's.

    Args:
      ids: of special pieces, for config.json.

    Raises:
      UserError: the run has no text encoder, or one that the family does not have: with norms before its blocks, or
        with adapters.
    """
    kind = importing.TEXT[family]
    own = {name.removeprefix(RECIPE): x for name, x in trees.by_path(params).items()}
    if "text/embedding" not in own:
        raise UserError(f"{config.name} has no text encoder: every weight of its loss that reads text is 0")
    _check(config, "text", kind.knobs, family)
    rules = [*kind.embedding, *kind.layer]
    _write(config, kind, rules, {rule.ours: sharding.fetch(own[rule.ours]) for rule in rules}, out, ids)


def vision(config: Any, params: Any, family: str, out: pathlib.Path) -> None:
    """Writes model.safetensors, config.json and preprocessor_config.json of the video encoder in `params`, a recipe's
    or a task's; of the families of images as it sees clips of one frame.

    Args:
      family: one of `importing.VISION`.

    Raises:
      UserError: it computes what the family does not: tubelets, attention over time, pruning, other positions.
    """
    kind = importing.VISION[family]
    own = {name.removeprefix(RECIPE): x for name, x in trees.by_path(params).items()}
    if "vision/embed/kernel" not in own:
        raise UserError(f"{config.name} has no vision encoder: every weight of its loss that sees the video is 0")
    _check(config, "vision", {**_PLAIN, **kind.knobs}, family)
    if family == "beit" and not config.model.vision.layer_scale:
        raise UserError(
            f"config.model.vision.layer_scale = 0 of {config.name}: in beit it is above 0, and only a run with that "
            "can be exported; one without is a vit, where its positions are learned"
        )
    rules = [rule for rule in (*kind.embedding, *kind.layer, *kind.optional) if rule.ours.startswith("vision/")]
    values = {name: sharding.fetch(x) for name, x in own.items() if name.startswith("vision/")}
    taken = {rule.ours for rule in rules}
    if "vision/time" in own and "vision/time" not in taken:  # which an image sees the first row of
        first = values["vision/time"][0]
        values |= {name: values[name] + first for name in ("vision/cls", "vision/embed/bias")}
    if "vision/embed/bias" not in taken:  # CLIP's patches have none, but positions
        values["vision/space"] = np.concatenate(
            [values["vision/space"][:1], values["vision/space"][1:] + values["vision/embed/bias"]]
        )
    _write(config, kind, rules, values, out)
    half, side = [0.5] * 3, config.input.image_size
    pixels = {
        "image_processor_type": "VideoMAEImageProcessor" if family in _OF_CLIPS else "ViTImageProcessor",
        "do_resize": True,
        "do_center_crop": False,
        "size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": half,
        "image_std": half,
    }
    write_atomically(out / "preprocessor_config.json", json.dumps(pixels, indent=1).encode())


def _check(config: Any, tower: str, knobs: Mapping[str, Any], family: str) -> None:
    """Refuses a run whose knobs have other values than these, and one whose tower has adapters."""
    values = config_lib.leaves(config)
    for knob, only in knobs.items():
        if values[knob] != only:
            raise UserError(
                f"config.{knob} = {values[knob]!r} of {config.name}: in {family} it is {only!r}, and only a run with "
                "that can be exported"
            )
    if layers.adapter_width(config, tower):
        raise UserError(
            f"config.model.adapters.reduction = {config.model.adapters.reduction} of {config.name}, whose {tower} "
            f"encoder has adapters: {family} has none, and only a run without them there can be exported"
        )


def _write(
    config: Any,
    kind: Family,
    rules: list[Rule],
    values: dict[str, Any],
    out: pathlib.Path,
    more: Mapping[str, Any] | None = None,
) -> None:
    theirs = give(rules, values)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(
        out / "config.json", json.dumps(kind.config_of(config, theirs) | dict(more or {}), indent=1).encode()
    )
    tensors.write(out / "model.safetensors", theirs, {"format": "pt"})


def cli() -> None:
    """Entry point: a UserError becomes one message and exit status 2."""
    flags.DEFINE_string("workdir", None, "Directory of a training run.", required=True)
    flags.DEFINE_string("out", None, "Folder to write, new or empty.", required=True)
    flags.DEFINE_enum(
        "format",
        "safetensors",
        ["safetensors", "stablehlo"],
        "safetensors: one encoder, for transformers; stablehlo: both towers as programs, for JAX without this package.",
    )
    flags.DEFINE_enum("tower", "text", list(FAMILIES), "Which encoder, of --format=safetensors.")
    known = "; ".join(f"{tower}: {', '.join(families)}" for tower, families in FAMILIES.items())
    flags.DEFINE_string("family", None, f"Whose names the tensors get ({known}); the tower's first by default.")
    flags.DEFINE_string("checkpoint", None, "Step, or best; the newest intact one by default.")
    launch.run_app(main)


if __name__ == "__main__":
    cli()
