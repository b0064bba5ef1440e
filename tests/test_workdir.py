"""The tokenizer that a run keeps in its workdir: stored, found again, and refused where it is another."""

import json

import numpy as np
import pytest

from tests import byte_pairs
from vlp_jax import config as config_lib
from vlp_jax import workdir as workdir_lib
from vlp_jax.checkpoint import Checkpointer
from vlp_jax.input.tokenizer import FILE_NAMES, open_tokenizer, read
from vlp_jax.types import UserError

VOCAB = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\ncircle\n##s\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tokenizer of each kind, under names that do not tell."""
    from data import train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "words").write_bytes(VOCAB)
    (folder / "model").write_bytes(train_tokenizer.train(["a red circle", "two circles"]))
    pair = byte_pairs.write_pair(folder, byte_pairs.train("roberta", ["a red circle"]))
    return {"vocab.txt": folder / "words", "tokenizer.model": folder / "model", "tokenizer.json": pair}


def store(config, workdir):
    """What a training command does with its tokenizer before the first step."""
    path = workdir_lib.check(config, workdir, workdir_lib.saved_config(workdir))
    tokenizer = open_tokenizer(path, config.input.max_text_tokens, config.input.lowercase)
    workdir_lib.lock(workdir).close()
    workdir_lib.prepare(config, workdir, tokenizer)
    return tokenizer


@pytest.fixture
def save():
    """Saves a checkpoint of a run, as far as a workdir's checks read it."""

    def call(config, workdir):
        checkpoints = Checkpointer(workdir / workdir_lib.CHECKPOINTS, keep=1, asynchronous=False)
        checkpoints.save(1, {"x": np.zeros(1)}, {"config": config.to_dict()})
        checkpoints.close()

    return call


@pytest.mark.parametrize("name", FILE_NAMES)
def test_a_run_finds_its_own_tokenizer_again(tiny_config, files, tmp_path, save, name):
    workdir = tmp_path / "run"
    config = tiny_config({"input.tokenizer": str(files[name])})
    first = store(config, workdir)
    save(config, workdir)
    expected = [workdir_lib.CHECKPOINTS, workdir_lib.CONFIG_FILE, "lock", name]
    assert sorted(p.name for p in workdir.iterdir()) == sorted(expected)
    assert (workdir / name).read_bytes() == read(files[name])
    # The same command, and one that leaves the tokenizer to the workdir.
    for given in (str(files[name]), ""):
        again = store(tiny_config({"input.tokenizer": given}), workdir)
        assert type(again) is type(first) and again.serialized() == first.serialized()
    assert workdir_lib.run_tokenizer(workdir) == workdir / name


@pytest.mark.parametrize("name", FILE_NAMES)
def test_a_run_refuses_another_tokenizer(tiny_config, files, tmp_path, save, name):
    workdir = tmp_path / "run"
    config = tiny_config({"input.tokenizer": str(files[name])})
    store(config, workdir)
    save(config, workdir)
    other = next(path for kind, path in files.items() if kind != name)
    with pytest.raises(UserError, match=f"differs from the run's own .*{name}"):
        store(tiny_config({"input.tokenizer": str(other)}), workdir)
    with pytest.raises(UserError, match=r"holds a run with config.input.lowercase = True, this command says False"):
        store(tiny_config({"input.lowercase": False}), workdir)
    (workdir / name).unlink()
    with pytest.raises(UserError, match=r"holds a run, but neither tokenizer.model nor vocab.txt"):
        store(tiny_config({"input.tokenizer": str(files[name])}), workdir)


def test_a_command_that_saved_nothing_leaves_no_second_tokenizer(tiny_config, files, tmp_path):
    for name, path in files.items():
        store(tiny_config({"input.tokenizer": str(path)}), tmp_path)
        assert workdir_lib.stored_tokenizer(tmp_path) == tmp_path / name
    assert not (tmp_path / "vocab.txt").exists() and not (tmp_path / "tokenizer.model").exists()


def test_without_any_tokenizer_every_kind_is_asked_for(tiny_config, tmp_path):
    with pytest.raises(UserError, match=r"expected a SentencePiece model, a vocab.txt or a tokenizer.json"):
        workdir_lib.check(tiny_config(), tmp_path)


def test_the_lower_case_knob_reaches_the_tokenizer(tiny_config, tmp_path):
    (tmp_path / "v.txt").write_bytes(VOCAB + b"Red\n")
    config = tiny_config({"input.tokenizer": str(tmp_path / "v.txt"), "input.lowercase": False})
    assert store(config, tmp_path).encode(["Red red"])[0][0, :4].tolist() == [2, 8, 5, 3]
    saved = config_lib.from_json((tmp_path / workdir_lib.CONFIG_FILE).read_text())
    assert not saved.input.lowercase


def test_a_run_may_not_lose_or_change_a_source_of_its_mixture(tiny_config, files, tmp_path, save):
    def mixed(*names):
        config = tiny_config({"input.tokenizer": str(files["vocab.txt"])})
        for name in names:
            config_lib.add_source(config, name, weight=1, path=name, **({"frames": 1} if name == "stills" else {}))
        return config

    store(mixed("clips", "stills"), tmp_path / "run")
    save(mixed("clips", "stills"), tmp_path / "run")
    store(mixed("clips", "stills"), tmp_path / "run")
    for names in (("clips",), (), ("clips", "stills", "more")):
        with pytest.raises(UserError, match=r"holds a run with config\.mixture\."):
            store(mixed(*names), tmp_path / "run")
    other = mixed("clips", "stills")
    other.mixture.stills.frames = 4
    with pytest.raises(UserError, match=r"config\.mixture\.stills\.frames = 1, this command says 4"):
        store(other, tmp_path / "run")
    moved = mixed("clips", "stills")
    moved.mixture.stills.path = "elsewhere"
    store(moved, tmp_path / "run")


def test_the_checkpoint_says_what_the_run_is_even_where_its_config_file_is_lost_or_edited(
    tiny_config, files, tmp_path, save
):
    config = tiny_config({"input.tokenizer": str(files["vocab.txt"])})
    store(config, tmp_path)
    save(config, tmp_path)
    other = tiny_config({"input.tokenizer": str(files["vocab.txt"]), "model.vision.heads": 4})
    config_file = tmp_path / workdir_lib.CONFIG_FILE
    for content in (config_lib.to_json(other), "[1, 2]", None):
        config_file.unlink()
        if content is not None:
            config_file.write_text(content)
        with pytest.raises(UserError, match=r"config.model.vision.heads = 2, this command says 4"):
            workdir_lib.check(other, tmp_path, workdir_lib.saved_config(tmp_path))
        store(config, tmp_path)
        assert json.loads(config_file.read_text())["model"]["vision"]["heads"] == 2


def test_a_second_training_process_is_kept_out(tmp_path):
    first = workdir_lib.lock(tmp_path / "run")
    with pytest.raises(UserError, match="in use by another training process"):
        workdir_lib.lock(tmp_path / "run")
    first.close()
    workdir_lib.lock(tmp_path / "run").close()


def test_a_file_in_place_of_the_checkpoints_is_found_before_training(tiny_config, files, tmp_path):
    (tmp_path / workdir_lib.CHECKPOINTS).touch()
    with pytest.raises(UserError, match="checkpoints is a file"):
        store(tiny_config({"input.tokenizer": str(files["vocab.txt"])}), tmp_path)


def test_a_run_is_continued_with_its_own_answers_alone(tmp_path):
    with pytest.raises(UserError, match=r"no answers\.json"):
        workdir_lib.check_answers(tmp_path, b'["a"]')
    (tmp_path / workdir_lib.ANSWERS).write_bytes(b'["a", "b"]')
    workdir_lib.check_answers(tmp_path, b'["a",\n "b"]')
    for other, words in ((b'["a", "c"]', "number 1: 'b' there, 'c' here"), (b'["a"]', "number 1: 'b' there, the end")):
        with pytest.raises(UserError, match=words):
            workdir_lib.check_answers(tmp_path, other)


def test_a_best_state_alone_binds_the_workdir_as_a_checkpoint_does(tiny_config, files, tmp_path, save):
    # Of a run killed after its first evaluation and before its first checkpoint.
    config = tiny_config({"input.tokenizer": str(files["vocab.txt"])})
    store(config, tmp_path)
    save(config, tmp_path)
    (tmp_path / workdir_lib.CHECKPOINTS).rename(tmp_path / workdir_lib.BEST)
    with pytest.raises(UserError, match=r"config\.seed = 0, this command says 1"):
        store(tiny_config({"input.tokenizer": str(files["vocab.txt"]), "seed": 1}), tmp_path)
