"""Loads and runs the two exported towers: `python example.py` in the folder that vlp_jax.export wrote.

Needs jax, flatbuffers, numpy and safetensors alone. It embeds the clips and texts of example.npz and compares the
embeddings with those that the model gave; the exit status is 1 where they differ by more than the tolerance.
"""

import functools
import json
import pathlib
import sys

import jax
import numpy as np
from jax import export
from safetensors import numpy as safetensors_numpy

FOLDER = pathlib.Path(__file__).resolve().parent


def load(name):
    """`embed_video` or `embed_text` as a function of a batch of any size; it compiles once for each size."""
    exported = export.deserialize(bytearray((FOLDER / f"{name}.stablehlo").read_bytes()))
    parameters = jax.device_put(safetensors_numpy.load_file(FOLDER / f"{name}.safetensors"))
    return functools.partial(jax.jit(exported.call), parameters)


def main():
    example = np.load(FOLDER / "example.npz")
    compared = json.loads((FOLDER / "signature.json").read_text())["example"]
    videos = np.asarray(load("embed_video")(example["video"]))
    texts = np.asarray(load("embed_text")(example["ids"], example["mask"]))
    difference = max(abs(videos - example["video_embedding"]).max(), abs(texts - example["text_embedding"]).max())
    platform = jax.default_backend()
    tolerance = compared["tolerance" if platform == compared["platform"] else "tolerance_elsewhere"]
    print(f"similarity of {len(videos)} clips and {len(texts)} texts:\n{np.round(videos @ texts.T, 3)}")
    print(f"greatest difference from the model's embeddings, on {platform}: {difference:.2g} (tolerance {tolerance:g})")
    return 0 if difference <= tolerance else 1  # a NaN fails, too


if __name__ == "__main__":
    sys.exit(main())
