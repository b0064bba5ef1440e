"""Seconds and peak memory of starting from published weights: `python -m benchmarks.importing FOLDER ...`.

For each Hugging Face folder, of an encoder of images, videos or texts, one process creates the parameters of `base`
with that tower's form, then imports it. Prints a table and ends with one JSON line.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
import types
from typing import Any

import jax

from vlp_jax import config as config_lib
from vlp_jax import sharding, state
from vlp_jax.pretrained import importing, weights
from vlp_jax.pretrained.family import Family
from vlp_jax.types import UserError
from vlp_jax.validation import validate


def peak_gib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def fitting(folder: str, tower: str) -> Any:
    """The config of `base` in float32, changed where config.json of the folder says so."""
    _, theirs = weights.open_weights(folder)
    families: list[Family] = [*(importing.TEXT if tower == "text" else importing.VISION).values()]
    kinds = [kind for kind in families if theirs.get("model_type") in (kind.model_type, *kind.aliases)]
    if not kinds:
        raise UserError(f"{folder}: model_type {theirs.get('model_type')!r} is no {tower} encoder that is known")
    kind = kinds[0]
    theirs = {**theirs, **theirs.get(kind.section, {})}
    config = config_lib.defaults()
    # Nothing that only some towers can do with.
    plain = {"model.pruning.layers": (), "model.masking.kind": "tube", "model.vision.time_positions": "none"}
    found = {key: value for key, value in kind.expected(config, theirs).items() if key in config_lib.leaves(config)}
    layers = {f"model.{tower}.layers": min(theirs[kind.layers], 9) if tower == "text" else theirs[kind.layers]}
    start = {f"model.{tower}.init_from": folder, "input.path": "none", "input.tokenizer": "none", "batch_size": 8}
    pool = {} if found.get("model.vision.cls", True) else {"model.vision.pool": "mean"}
    frames = {"input.frames": 4 * found.get("model.vision.tubelet", 1), "model.projection": 512}
    return config_lib.update(config, {**plain, **found, **pool, **layers, **start, **frames, "epochs": 1.0})


def measure(folder: str, tower: str, vocabulary: int) -> dict[str, Any]:
    """Creates and imports; `seconds`, `before_gib` and `after_gib`, peaks."""
    config = fitting(folder, tower)
    validate(config)
    special = {"pad_id": 0, "unk_id": 1, "cls_id": 2, "sep_id": 3, "mask_id": 4, "first_word_id": 5}
    tokenizer = types.SimpleNamespace(vocab_size=vocabulary, end_word_id=vocabulary, starts_word=None, **special)
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    with sharding.use_mesh(mesh):
        params = jax.block_until_ready(state.setup(config, tokenizer, mesh, 10).create().params)
        before, start = peak_gib(), time.perf_counter()
        new, report = importing.tower(tower, config, params)
        jax.block_until_ready(new)
    seconds = time.perf_counter() - start
    loaded = sum(taken.how != "created" for taken in report.taken.values())
    size = sum(
        file.stat().st_size for file in pathlib.Path(folder).iterdir() if file.suffix in (".safetensors", ".bin")
    )
    return {
        "folder": pathlib.Path(folder).name,
        "tower": tower,
        "seconds": seconds,
        "before_gib": before,
        "after_gib": peak_gib(),
        "arrays": loaded,
        "file_gib": size / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="tower=FOLDER, vision=clip-vit-base-patch16")
    parser.add_argument("--vocabulary", type=int, default=30522, help="rows of the word table (%(default)s)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        tower, _, folder = given.folders[0].partition("=")
        print(json.dumps(measure(folder, tower, given.vocabulary)))
        return
    results = []
    print("| | file, GiB | seconds | peak before, GiB | peak rises by, GiB |\n|---|---|---|---|---|", flush=True)
    for named in given.folders:
        command = [sys.executable, "-m", "benchmarks.importing", named, "--here", f"--vocabulary={given.vocabulary}"]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            print(done.stderr.splitlines()[-1], file=sys.stderr)
            sys.exit(1)
        x = json.loads(done.stdout.splitlines()[-1])
        results.append(x)
        rise = x["after_gib"] - x["before_gib"]
        cells = (x["file_gib"], x["seconds"], x["before_gib"], rise)
        print(f"| {x['folder']}, {x['tower']} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |", flush=True)
    print(json.dumps({"benchmark": "importing", "results": results}))


if __name__ == "__main__":
    main()
