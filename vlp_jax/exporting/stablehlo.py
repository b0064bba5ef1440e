"""A run's two towers as StableHLO programs, for any program that has JAX: `write(loaded, out)`.

The parameters lie beside the programs, as their argument, not inside as constants: with 342 MB of constants the video
tower of base size takes 27 s and 4.7 GB to its first result on two CPU cores, with an argument 13 s and 2.6 GB.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import export

from vlp_jax import config as config_lib
from vlp_jax import sharding, trees
from vlp_jax.analysis.loading import Loaded
from vlp_jax.exporting import tensors
from vlp_jax.files import write_atomically
from vlp_jax.input.wordpiece import WordPiece
from vlp_jax.recipes import recipe

PLATFORMS = ("cpu", "cuda", "tpu")
TEXTS = ("a video", "two people play a game, then they laugh")  # of the example
_TOLERANCE = 1e-5  # of a unit embedding, between a float32 program and the same one exported, on one platform
_ROUNDED = 2e-2  # in bfloat16, whose roundings XLA places anew in each program, and in other platforms' TF32


def write(loaded: Loaded, out: pathlib.Path) -> None:
    """Writes `embed_video` and `embed_text` of a run, each as a program and its parameters, with an example.

    `out` then holds, for both, NAME.stablehlo (a serialised `jax.export.Exported` of `(parameters, batch)`, for any
    number of clips or texts, on CPU, CUDA and TPU) and NAME.safetensors; the tokenizer; signature.json, which says what
    goes in and what comes out; example.py and its example.npz, whose embeddings the run's own model gave. Clips have as
    many frames as `vlp_jax.evaluate` gives it.

    Args:
      loaded: a run of pre-training, or the recipe of a task's.
      out: made here.

    Raises:
      UserError: its embeddings are not there or were not trained.
    """
    run = loaded.run
    config = run.config.copy_and_resolve_references()
    recipe.require_embeddings(loaded.model, config, "--format=stablehlo")
    # What runs on every platform; both knobs change how fast it computes, not what.
    config_lib.update(config, {"model.attention_kernel": "xla", "model.remat": "none"})
    graph, abstract = sharding.abstract_model(lambda: recipe.build(config, run.tokenizer, nnx.Rngs(config.seed)))
    structure = jax.tree.structure(abstract)
    params = {name: sharding.fetch(x) for name, x in trees.by_path(run.params).items()}

    def embed_video(leaves: Any, video: Any) -> jax.Array:
        return nnx.merge(graph, jax.tree.unflatten(structure, leaves)).embed_video(video)

    def embed_text(leaves: Any, ids: Any, mask: Any) -> jax.Array:
        return nnx.merge(graph, jax.tree.unflatten(structure, leaves)).embed_text(ids, mask)

    form, dtype = config_lib.clip_form(config_lib.evaluated_input(config))
    ids, mask, _ = run.tokenizer.encode(list(TEXTS))
    random = np.random.default_rng(0)
    numbers = random.integers(0, 256, (2, *form)) if dtype == "uint8" else random.normal(size=(2, *form))
    video = numbers.astype(dtype)
    out.mkdir(parents=True, exist_ok=True)
    _tower("embed_video", embed_video, params, (video,), out)
    _tower("embed_text", embed_text, params, (ids, mask), out)

    # By the run's own model, not by what was exported: else the example could only agree with itself.
    expected = {
        "video_embedding": loaded.apply_rows(_embed_video, video),
        "text_embedding": loaded.apply_rows(_embed_text, (ids, mask)),
    }
    inputs = {"video": video, "ids": ids, "mask": mask}
    np.savez_compressed(out / "example.npz", allow_pickle=False, **inputs, **expected)
    (out / run.tokenizer.file_name).write_bytes(run.tokenizer.serialized())
    write_atomically(out / "signature.json", json.dumps(_signature(loaded, expected), indent=1).encode())
    example = pathlib.Path(__file__).with_name("example.py")
    write_atomically(out / example.name, example.read_bytes())


def _embed_video(model: Any, video: jax.Array) -> jax.Array:
    return model.embed_video(video)


def _embed_text(model: Any, text: tuple[jax.Array, jax.Array]) -> jax.Array:
    return model.embed_text(*text)


def _tower(
    name: str, function: Callable[..., jax.Array], params: dict[str, Any], example: tuple[Any, ...], out: pathlib.Path
) -> None:
    """Writes one program, and the parameters that it reads."""
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in params.items()}
    fixed = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in example]
    # A program of a fixed batch says which arguments it reads; one of any batch keeps them all.
    read = export.export(jax.jit(function))(list(shapes.values()), *fixed).module_kept_var_idx
    used = [name for i, name in enumerate(params) if i in read]

    def of_used(given: dict[str, Any], *batch: Any) -> jax.Array:
        return function([given.get(name, shapes[name]) for name in params], *batch)

    (size,) = export.symbolic_shape("batch")
    batch = [jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for x in example]
    exported = export.export(jax.jit(of_used), platforms=PLATFORMS)({name: shapes[name] for name in used}, *batch)
    write_atomically(out / f"{name}.stablehlo", bytes(exported.serialize()))
    tensors.write(out / f"{name}.safetensors", {name: params[name] for name in used})


def _signature(loaded: Loaded, expected: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the programs take and give, for whoever prepares their inputs."""
    run = loaded.run
    c, t = config_lib.evaluated_input(run.config), run.tokenizer
    form, dtype = config_lib.clip_form(c)
    frames = f"the {c.frames} at the centres of as many equal intervals of the clip: frames (edges[i] + edges[i + 1]) "
    frames += f"// 2 of n, edges[i] = i * n // {c.frames}"
    pixels = {
        "values": "RGB, 0 to 255; the program normalises them",
        "frames": frames,
        "size": f"each whole frame resized (bilinear) to {c.image_size} x {c.image_size}, whatever its aspect ratio",
    }
    features = {"values": "precomputed features, those of the run's config.input.features", "frames": frames}
    width = expected["text_embedding"].shape[1]
    return {
        "name": run.config.name,
        "recipe": run.config.recipe,
        "step": run.step,
        "platforms": PLATFORMS,
        "embed_video": {
            "arguments": ["the tensors of embed_video.safetensors, by name", "video"],
            "video": {"shape": ["batch", *form], "dtype": dtype, **(features if c.features.width else pixels)},
            "returns": {"shape": ["batch", width], "dtype": "float32"},
        },
        "embed_text": {
            "arguments": ["the tensors of embed_text.safetensors, by name", "ids", "mask"],
            "ids": {
                "shape": ["batch", t.max_tokens],
                "dtype": "int32",
                "values": f"{t.file_name}: [CLS] pieces [SEP], cut or padded to {t.max_tokens}",
                "cls_id": t.cls_id,
                "sep_id": t.sep_id,
                "pad_id": t.pad_id,
                "unk_id": t.unk_id,
                "lowercase": bool(c.lowercase)
                if t.file_name == WordPiece.file_name
                else "as the tokenizer's file says",
            },
            "mask": {
                "shape": ["batch", t.max_tokens],
                "dtype": "bool",
                "values": "true on tokens, [CLS] and [SEP] too",
            },
            "returns": {"shape": ["batch", width], "dtype": "float32"},
        },
        "similarity": "the dot product of both, which are of unit length (a clip's at most, where frames are averaged)",
        "example": {
            "platform": jax.default_backend(),
            "tolerance": _TOLERANCE if run.config.compute_dtype == "float32" else _ROUNDED,
            "tolerance_elsewhere": _ROUNDED,
        },
    }
