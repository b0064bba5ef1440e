"""Training and evaluation from a WordPiece vocabulary, and from RoBERTa's files, as a user runs them."""

import shutil
import sys

import pytest

from data import train_tokenizer
from tests import byte_pairs
from tests.pretrained import made

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# The rest of the model is left out, as it takes longest to compile.
LEFT_OUT = {"loss.vtm": 0.0, "loss.mvm": 0.0, "model.selection.frames": 0, "model.pruning.layers": ()}


@pytest.mark.slow
def test_a_run_trains_on_whole_words_of_a_vocabulary_and_is_evaluated_from_its_own_copy(shapes, command, run, tmp_path):
    captions = train_tokenizer.read_captions(shapes)
    words = sorted({word for caption in captions for word in caption.replace(",", " ,").split()})
    # Some words in two pieces, so that whole-word masking has something to do.
    halves = [half for word in words[::3] if len(word) > 2 for half in (word[:2], "##" + word[2:])]
    given = tmp_path / "words"
    given.write_text("\n".join(dict.fromkeys([*SPECIAL, *halves, *(w for w in words if w not in words[::3])])))
    workdir = tmp_path / "run"
    changes = {"steps": 2, "input.tokenizer": str(given), "model.text.whole_words": True}
    done = run(command(workdir, **changes, **LEFT_OUT))
    assert done.returncode == 0, done.stderr
    assert not (workdir / "tokenizer.model").exists()
    assert (workdir / "vocab.txt").read_bytes() == given.read_bytes()
    given.unlink()
    done = run([sys.executable, "-m", "vlp_jax.evaluate", f"--workdir={workdir}"])
    assert done.returncode == 0, done.stderr
    assert "10 captions, 10 clips" in done.stdout


@pytest.mark.slow
def test_a_run_starts_from_robertas_weights_and_vocabulary_and_needs_its_folder_no_more(shapes, command, run, tmp_path):
    file = byte_pairs.train("roberta", train_tokenizer.read_captions(shapes), size=300)
    sizes = {"width": 16, "heads": 2, "hidden": 64, "length": 32, "vocabulary": len(file["model"]["vocab"])}
    _, theirs = made.weights_of("roberta", 2, **sizes)
    folder = made.folder(tmp_path / "roberta", "roberta", theirs, intermediate_size=64, layer_norm_eps=1e-5)
    given, workdir, out = byte_pairs.write_pair(folder, file), tmp_path / "run", tmp_path / "out"
    changes = {
        **{"steps": 2, "input.tokenizer": str(given), "model.text.whole_words": True},
        **{"model.text.init_from": str(folder), "model.text.norm": "post", "model.text.norm_epsilon": 1e-5},
    }
    done = run(command(workdir, **changes, **LEFT_OUT))
    assert done.returncode == 0, done.stderr
    assert not (workdir / "tokenizer.model").exists() and not (workdir / "vocab.json").exists()
    shutil.rmtree(folder)
    done = run([sys.executable, "-m", "vlp_jax.evaluate", f"--workdir={workdir}"])
    assert done.returncode == 0, done.stderr
    assert "10 captions, 10 clips" in done.stdout
    done = run([sys.executable, "-m", "vlp_jax.export", f"--workdir={workdir}", f"--out={out}", "--family=roberta"])
    assert done.returncode == 0, done.stderr
    assert (out / "tokenizer.json").read_bytes() == (workdir / "tokenizer.json").read_bytes()
