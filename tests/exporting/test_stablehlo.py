"""Towers exported as StableHLO, run by a process that has neither this package nor Flax; what cannot be exported."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from configs import singularity, smaug
from tests.analysis.conftest import make_run, shapes, workdir  # noqa: F401  (fixtures)
from tests.end_to_end.conftest import environment, run  # noqa: F401  (fixtures)
from vlp_jax import analysis
from vlp_jax import config as config_lib
from vlp_jax.exporting import stablehlo
from vlp_jax.types import UserError

# Refuses to import what a user may not have, then runs the example and embeds a batch of another size.
ELSEWHERE = """
import runpy, sys
import numpy as np
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("vlp_jax", "flax", "data", "configs"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
folder = sys.argv[1]
example = runpy.run_path(f"{folder}/example.py")
status = example["main"]()
batch = np.load(f"{folder}/other.npz")
np.savez(
    f"{folder}/embedded.npz",
    video=example["load"]("embed_video")(batch["video"]),
    text=example["load"]("embed_text")(batch["ids"], batch["mask"]),
)
assert not {"vlp_jax", "flax"} & set(sys.modules)
sys.exit(status)
"""


def elsewhere(folder):
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(folder)], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )


def video(model, clips):
    return model.embed_video(clips)


def text(model, ids, mask):
    return model.embed_text(ids, mask)


SYSTEMS = {
    "smaug": {},
    "fine-tuned": {
        "task.kind": "multiple_choice",
        "loss.mlm": 0.0,
        "loss.mvm": 0.0,
        "optimizer.trainable": ("recipe/.*",),
    },
    "singularity": {
        **smaug.DENSE,
        **singularity.MODEL,
        **singularity.STAGES["stage2"],
        "input.frames": 3,
    },
    "evaluated with more frames": {"evaluation.frames": 5},
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_numbers_are_the_models_in_a_process_without_this_package(make_run, tmp_path, system):  # noqa: F811
    make_run(tmp_path / "run", SYSTEMS[system])
    loaded = analysis.load(tmp_path / "run")
    out = tmp_path / "out"
    stablehlo.write(loaded, out)
    random = np.random.default_rng(1)
    frames = SYSTEMS[system].get("evaluation.frames", 3)
    clips = random.integers(0, 256, (5, frames, 16, 16, 3), np.uint8)
    ids, mask, _ = loaded.run.tokenizer.encode(["a small red circle", "", "a star spins, then it grows"])
    np.savez(out / "other.npz", video=clips, ids=ids, mask=mask)
    done = elsewhere(out)
    assert done.returncode == 0, done.stderr
    assert "greatest difference" in done.stdout
    there = np.load(out / "embedded.npz")
    np.testing.assert_allclose(there["video"], loaded.apply(video, clips), atol=1e-6)
    np.testing.assert_allclose(there["text"], loaded.apply(text, ids, mask), atol=1e-6)
    signature = json.loads((out / "signature.json").read_text())
    assert signature["embed_video"]["video"]["shape"] == ["batch", frames, 16, 16, 3]
    assert signature["embed_video"]["video"]["frames"].startswith(f"the {frames} at the centres")
    assert signature["embed_text"]["ids"]["shape"] == ["batch", ids.shape[1]]
    assert (out / "tokenizer.model").read_bytes() == (tmp_path / "run" / "tokenizer.model").read_bytes()
    # Each tower has what it reads, and nothing of the other, of the fusion or of the decoder.
    for name, parts in (
        ("video", ("vision/", "video_projection/", "temporal/")),
        ("text", ("text/", "text_projection/")),
    ):
        assert all(key.startswith(parts) for key in safetensors_numpy.load_file(out / f"embed_{name}.safetensors"))


def test_the_example_fails_where_the_numbers_differ(workdir, tmp_path):  # noqa: F811
    stablehlo.write(analysis.load(workdir), tmp_path)
    file = tmp_path / "embed_text.safetensors"
    values = safetensors_numpy.load_file(file)
    safetensors_numpy.save_file({name: x * 1.01 for name, x in values.items()}, file)
    example = np.load(tmp_path / "example.npz")
    np.savez(tmp_path / "other.npz", **{name: example[name] for name in ("video", "ids", "mask")})
    assert elsewhere(tmp_path).returncode == 1


def test_the_example_compares_with_the_runs_own_model(workdir, tmp_path, monkeypatch):  # noqa: F811
    loaded, build = analysis.load(workdir), stablehlo.recipe.build

    def other(config, *args):  # the same parameters under another function
        changed = config_lib.update(config.copy_and_resolve_references(), {"model.vision.activation": "quick_gelu"})
        return build(changed, *args)

    with monkeypatch.context() as patched:
        patched.setattr(stablehlo.recipe, "build", other)
        stablehlo.write(loaded, tmp_path)
    example = np.load(tmp_path / "example.npz")
    np.testing.assert_allclose(example["video_embedding"], loaded.apply(video, example["video"]), atol=1e-6)
    np.savez(tmp_path / "other.npz", **{name: example[name] for name in ("video", "ids", "mask")})
    done = elsewhere(tmp_path)
    assert done.returncode == 1 and "greatest difference" in done.stdout, done.stderr


def test_bfloat16_runs_allow_their_rounding(make_run, tmp_path):  # noqa: F811
    make_run(tmp_path / "run", {"compute_dtype": "bfloat16"})
    stablehlo.write(analysis.load(tmp_path / "run"), tmp_path / "out")
    compared = json.loads((tmp_path / "out" / "signature.json").read_text())["example"]
    assert compared == {"platform": jax.default_backend(), "tolerance": 2e-2, "tolerance_elsewhere": 2e-2}


def test_a_run_whose_embeddings_were_not_trained_is_refused(make_run, tmp_path):  # noqa: F811
    make_run(tmp_path / "run", {"loss.vtc": 0.0, "loss.vtm": 0.0, "model.selection.frames": 0})
    with pytest.raises(UserError, match=r"config\.loss\.vtc = 0.*take a run with config\.loss\.vtc above 0"):
        stablehlo.write(analysis.load(tmp_path / "run"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_binary_writes_both_towers_and_refuses_flags_of_the_other_format(run, workdir, tmp_path):  # noqa: F811
    command = [sys.executable, "-m", "vlp_jax.export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}"]
    for flag, words in (
        ("--tower=text", "--tower=text with --format=stablehlo: both towers are written"),
        ("--family=bert", "--family=bert with --format=stablehlo"),
    ):
        done = run([*command, "--format=stablehlo", flag])
        assert done.returncode == 2 and words in done.stderr
    assert run([*command, "--format=onnx"]).returncode == 2
    assert not (tmp_path / "out").exists()
    done = run([*command, "--format=stablehlo"])
    assert done.returncode == 0 and "embed_video and embed_text of smaug-tiny, step 7" in done.stdout, done.stderr
    names = {"embed_text.safetensors", "embed_text.stablehlo", "embed_video.safetensors", "embed_video.stablehlo"}
    names |= {"example.npz", "example.py", "signature.json", "tokenizer.model"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1
