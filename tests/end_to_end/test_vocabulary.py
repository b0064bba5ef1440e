"""Training and evaluation from a WordPiece vocabulary, as a user runs them."""

import sys

import pytest

from data import train_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


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
    # The rest of the model is left out, as it takes longest to compile.
    left_out = {"loss.vtm": 0.0, "loss.mvm": 0.0, "model.selection.frames": 0, "model.pruning.layers": ()}
    done = run(command(workdir, **changes, **left_out))
    assert done.returncode == 0, done.stderr
    assert not (workdir / "tokenizer.model").exists()
    assert (workdir / "vocab.txt").read_bytes() == given.read_bytes()
    given.unlink()
    done = run([sys.executable, "-m", "vlp_jax.evaluate", f"--workdir={workdir}"])
    assert done.returncode == 0, done.stderr
    assert "10 captions, 10 clips" in done.stdout
