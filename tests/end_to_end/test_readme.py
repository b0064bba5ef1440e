"""Every command of the README runs as written, on miniature data and sizes appended as further flags."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.pretrained import made

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.S)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
PYTHON = [command for command in COMMANDS if command.startswith("python -m ")]


def test_the_readme_shows_commands_of_known_kinds_only():
    assert PYTHON and set(COMMANDS) == set(PYTHON) | {"make quickstart", "make test", "python towers/example.py"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder of videos with `clips.csv` and its tokenizer."""
    from data import train_tokenizer
    from data.moving_shapes import builder

    folder = tmp_path_factory.mktemp("own") / "clips"
    builder.prepare(folder, builder.Settings(train=12, validation=2, test=3, compositional=1, format="folder"), 1)
    captions = train_tokenizer.read_captions(folder / "clips.csv", "caption", None)
    (folder / "tokenizer.model").write_bytes(train_tokenizer.train(captions))
    return folder


# What a recipe without masking and sparsification refuses of the miniature's flags.
DENSE = {"model.pruning.layers": "()", "model.selection.frames": "0"}
# Of a run that takes its model over: nothing of the model.
FINE_TUNED = {
    **{"epochs": 0.0, "batch_size": 8, "log_every": 1, "input.frames": 3, "input.cache_gib": 0.0},
    **{"evaluation.every_steps": 2, "evaluation.batch_size": 8, "evaluation.rerank": 0, "evaluation.bootstrap": 0},
}


def changed(flags, values):
    """Flags `--config.KEY=VALUE` with other values."""
    kept = [flag for flag in flags if flag.partition("=")[0].removeprefix("--config.") not in values]
    return kept + [f"--config.{key}={value}" for key, value in values.items()]


@pytest.fixture(scope="module")
def asked(tmp_path_factory, shapes, finished, run):
    """Workdir of a run that is fine-tuned for question answering."""
    workdir = tmp_path_factory.mktemp("asked") / "run"
    values = {**FINE_TUNED, "steps": 2, "init_from": finished, "input.path": shapes}
    config = "--config=configs/finetune/question_answering.py:moving_shapes"
    done = run([sys.executable, "-m", "vlp_jax.train", config, f"--workdir={workdir}", *changed([], values)])
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.parametrize("text", PYTHON)
def test_command(text, tmp_path, shapes, clips, finished, command, run, request, eight_devices):
    words = [sys.executable, *shlex.split(text)[1:]]
    module = words[2]
    own = "own" in text
    replaced = {"clips.csv": clips / "clips.csv", "tokenizer.model": clips / "tokenizer.model"}
    if "bert-base" in text:
        bert = made.bert(tmp_path / "bert", 2, width=16, heads=2, hidden=64, length=32)
        replaced |= {"bert-base-uncased/vocab.txt": bert / "vocab.txt", "bert-base-uncased": bert}
    if "features" in text:
        replaced |= {"FEATURES": request.getfixturevalue("features").parent / "features", "packed": tmp_path / "packed"}
    replaced |= {"DATASET": shapes, "TOKENIZER": shapes / "tokenizer.model"}
    for old, new in replaced.items():
        words = [re.sub(rf"(^|=){re.escape(old)}$", lambda m, new=new: m[1] + str(new), word) for word in words]
    more = {}
    if module == "data.train_tokenizer":
        words[words.index("--output") + 1] = str(tmp_path / "tokenizer.model")
    elif module == "vlp_jax.train":
        words[words.index("--workdir") + 1] = str(tmp_path / "run")
        small = [flag for flag in command("")[5:] if flag.startswith("--config.")]
        if "smaug_5m" in text:
            small += [f"--config.mixture.{name}.path={shapes}" for name in ("webvid", "cc3m")]
            small += ["--config.input.crop_scale=(1.0,1.0)", "--config.input.max_text_tokens=18"]
            small += ["--config.input.workers=0"]
            if ":stage1" in text:
                small = [flag for flag in small if "selection.frames" not in flag and "input.frames" not in flag]
            else:
                # tests/end_to_end/test_curriculum.py starts from a first stage.
                words = [re.sub("init_from=.*", "init_from=", word) for word in words]
        if "singularity" in text or "vindlu" in text:
            # test_neighbours.py starts from a first stage.
            words = [re.sub("init_from=.*", "init_from=", word) for word in words]
            small = changed(small, {**DENSE, "input.frames": 1} if ":small_stage1" in text else DENSE)
        if "features" in text:
            values = {"features.path": request.getfixturevalue("features"), "features.width": 32, "max_bad_share": 1.0}
            words = changed(words, {f"input.{key}": value for key, value in values.items()})
            small = changed(small, {"model.pruning.layers": "()"})
        if "finetune" in text:
            words = [re.sub("init_from=.*", f"init_from={finished}", word) for word in words]
            small = changed([], {**FINE_TUNED, "input.path": shapes})
        given = {word.partition("=")[0] for word in words}
        small = [flag for flag in small if flag.partition("=")[0] not in given]
        if own:  # the path and tokenizer are the user's
            small = [flag for flag in small if not flag.startswith(("--config.input.path", "--config.input.tokenizer"))]
        words += [*small, "--config.steps=2"]
        if "finetune" not in text:
            words += ["--config.compute_dtype=float32", "--config.model.vision.patch_size=8"]
        more = eight_devices if "mesh" in text else {}
    elif module == "vlp_jax.evaluate":
        source = request.getfixturevalue("asked") if "runs/qa" in text else finished
        workdir = shutil.copytree(source, tmp_path / "run")
        words[words.index("--workdir") + 1] = str(workdir)
        if own:
            words[words.index("all")] = "test"
    elif module == "vlp_jax.export" and "stablehlo" in text:
        words[words.index("--workdir") + 1], words[words.index("--out") + 1] = str(finished), str(tmp_path / "towers")
    elif module == "vlp_jax.export":
        post = {"model.text.norm": "post", "model.text.norm_epsilon": 1e-12, "steps": 1}
        assert run(command(tmp_path / "run", **post)).returncode == 0
        words[words.index("--workdir") + 1 :] = [str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    elif module == "vlp_jax.compare":
        workdir = shutil.copytree(finished, tmp_path / "run")
        for flags in ([], ["--ablate=order"]):
            done = run([sys.executable, "-m", "vlp_jax.evaluate", f"--workdir={workdir}", *flags])
            assert done.returncode == 0, done.stderr
        # The quickstart ends at step 328, the miniature at 12.
        words = [word.replace("runs/quickstart", str(workdir)).replace("_328", "_12") for word in words]
    elif module == "vlp_jax.search":
        words[words.index("clips")] = str(clips)
        words[words.index("--workdir") + 1] = str(finished)
    elif module == "vlp_jax.report":
        runs = {name: str(tmp_path / name) for name in ("a", "b", "c")}
        for place in runs.values():
            shutil.copytree(finished, place)
        runs |= {"quickstart": runs["a"]}
        words = [runs.get(word.removeprefix("runs/"), word) for word in words]
        words = [str(tmp_path / word) if word == "compared.html" else word for word in words]
    elif module == "vlp_jax.plan":
        # The compiler for TPUs is an extra: the CPU's devices take their place.
        small = [flag for flag in command("")[5:] if flag.startswith("--config.") and "input.path" not in flag]
        words[words.index("--topology") + 1] = "cpu:2"
        words = [word for word in words if not word.startswith("--config.mesh")]
        words += [*small, "--config.compute_dtype=float32", "--config.model.vision.patch_size=8"]
    elif module == "data.pack_features":
        pass
    elif module == "vlp_jax.input.check":
        words += ["--sample", "4"]
    elif module == "benchmarks.step_time":
        words += ["--size", "tiny", "--steps", "1", "--batch", "4", "--set", "model.unroll=false"]
    else:
        pytest.fail(f"no miniature is known for {module}")
    done = run(words, **more)
    assert done.returncode == 0, done.stderr
    if "stablehlo" in text:
        done = run([sys.executable, str(tmp_path / "towers" / "example.py")])
        assert done.returncode == 0, done.stderr + done.stdout


def test_make_knows_every_target_that_the_readme_names():
    for target in ("quickstart", "test", "gpu", "tpu"):
        assert re.search(rf"`?make {target}", README)
        shown = subprocess.run(["make", "--dry-run", "--always-make", target], cwd=ROOT, capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
