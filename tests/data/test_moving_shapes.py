"""moving_shapes: splits stay apart, questions follow from captions, and the data does not depend on how it was made."""

import collections
import csv
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data.moving_shapes import builder, questions, render, scenes
from data.moving_shapes.__main__ import main
from vlp_jax import config as config_lib
from vlp_jax.input import sources
from vlp_jax.types import UserError

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = builder.Settings(train=40, validation=4, test=12, compositional=4, seed=5)
DEFAULT_COUNTS = builder.Settings().counts()

# The tests' own reading of a caption, apart from the code under test.
EVENT = re.compile(
    r"a (?P<size>small|large) (?P<color>red|orange|yellow|green|cyan|blue|purple) "
    r"(?P<shape>circle|square|triangle|star|cross) "
    r"(?P<motion>moves left|moves right|moves up|moves down|grows|shrinks|spins|fades|darkens)"
)
HELD_OUT = {("red", "triangle"), ("yellow", "circle"), ("green", "cross"), ("blue", "star")}


def read(caption):
    """Caption -> its events, each a dict with size, color, shape and motion."""
    matches = [EVENT.fullmatch(part) for part in caption.split(", then ")]
    events = [match.groupdict() for match in matches if match]
    assert len(events) == len(matches) <= 2, caption
    return events


@pytest.fixture(scope="module")
def tfds_directory(tmp_path_factory):
    """Made in this process, as a TFDS dataset."""
    out = tmp_path_factory.mktemp("tfds") / "shapes"
    builder.prepare(out, SETTINGS, workers=1)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same data made by the command in two processes, whose fresh memory holds other values, as a folder."""
    out = tmp_path_factory.mktemp("folder") / "deeper" / "shapes"
    command = [sys.executable, "-m", "data.moving_shapes", "--out", str(out), "--format", "folder", "--workers", "2"]
    for name in ("train", "validation", "test", "compositional", "seed"):
        command += [f"--{name}", str(getattr(SETTINGS, name))]
    env = os.environ | {"MALLOC_PERTURB_": "119"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "60 clips" in done.stdout and "60/60" in done.stderr
    return out


@pytest.fixture(scope="module")
def plan():
    return scenes.plan(DEFAULT_COUNTS, seed=0)


def records(directory):
    opened = tfds.builder_from_directory(directory)
    return {split: list(opened.as_data_source(split=split)) for split in opened.info.splits}


# --- What is written --------------------------------------------------------------------------------------------------


def test_tfds_directory_opens_by_its_own_path_and_numbers_clips_in_order(tfds_directory):
    splits = records(tfds_directory)
    assert {split: len(rows) for split, rows in splits.items()} == SETTINGS.counts()
    for split, rows in splits.items():
        assert [row["clip_id"].decode() for row in rows] == [f"{split}_{i:06d}" for i in range(len(rows))]


def test_folder_and_tfds_hold_the_same_bytes_whatever_the_workers(tfds_directory, folder):
    with open(folder / "clips.csv", encoding="utf-8", newline="") as file:
        table = {row["clip_id"]: row for row in csv.DictReader(file)}
    assert len(table) == 60
    for split, rows in records(tfds_directory).items():
        for row in rows:
            other = table[row["clip_id"].decode()]
            assert other["split"] == split
            assert (folder / other["video"]).read_bytes() == row["video"]
            assert (other["caption"], other["attributes"]) == (row["caption"].decode(), row["attributes"].decode())
    tables = {f"{kind}_{split}" for kind in ("qa", "mc", "cls", "clips") for split in SETTINGS.counts()}
    tables = {f"{name}.txt" if name.startswith("clips") else f"{name}.jsonl" for name in tables} | {"qa_answers.jsonl"}
    assert {path.name for path in folder.iterdir()} == tables | {"videos", "clips.csv", "moving_shapes.json"}
    for name in tables:
        assert (folder / name).read_bytes() == (tfds_directory / name).read_bytes()


def test_encoder_does_not_depend_on_what_memory_held_before():
    # Clips whose bytes varied between calls while x264 was allowed to use B-frames.
    for scene in scenes.plan(DEFAULT_COUNTS, seed=0)[61:127:23]:
        assert len({render.clip(scene)[0] for _ in range(15)}) == 1


def test_another_seed_gives_other_clips():
    one, other = (scenes.plan({"train": 20}, seed) for seed in (0, 1))
    assert [s.caption for s in one] != [s.caption for s in other]
    scene = one[0]
    moved = scenes.Scene(scene.split, scene.index, 1, scene.events)
    assert render.clip(scene)[0] != render.clip(moved)[0]


def test_a_split_keeps_its_clips_when_train_grows():
    small, large = (scenes.plan({"train": n, "test": 10}, 3) for n in (5, 50))
    assert [s for s in small if s.split == "test"] == [s for s in large if s.split == "test"]


def test_the_same_command_again_does_nothing(tfds_directory):
    before = {p.name: p.stat().st_mtime_ns for p in tfds_directory.iterdir()}
    assert "nothing done" in builder.prepare(tfds_directory, SETTINGS)
    assert before == {p.name: p.stat().st_mtime_ns for p in tfds_directory.iterdir()}


def test_other_arguments_on_a_finished_directory_are_refused_by_name(tfds_directory, capsys):
    arguments = ["--train", "40", "--validation", "4", "--test", "9", "--compositional", "4", "--seed", "6"]
    assert main(["--out", str(tfds_directory), *arguments]) == 2
    message = capsys.readouterr().err
    assert "test=12 there, 9 asked" in message and "seed=5 there, 6 asked" in message and "train" not in message
    assert message.count("\n") == 1


def test_a_directory_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="new or empty"):
        builder.prepare(tmp_path, SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_preparation_that_fails_leaves_nothing(tmp_path, monkeypatch):
    drawn = []

    def fail_later(scene):
        drawn.append(scene)
        if len(drawn) > 3:
            raise RuntimeError("the disk is full")
        return b"", "{}"

    monkeypatch.setattr(render, "clip", fail_later)
    for kind in ("tfds", "folder"):
        drawn.clear()
        with pytest.raises(RuntimeError, match="disk is full"):
            builder.prepare(tmp_path / "shapes", builder.Settings(train=9, test=1, format=kind))
        assert list(tmp_path.iterdir()) == []


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.05)


def test_a_killed_preparation_leaves_no_directory_and_no_process(tmp_path):
    command = [sys.executable, "-m", "data.moving_shapes", "--out", str(tmp_path / "shapes"), "--train", "20000"]
    running = subprocess.Popen(
        [*command, "--format", "folder"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: any(tmp_path.rglob("*.mp4")))
        children = pathlib.Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    finally:
        running.kill()
        running.wait()
    assert not (tmp_path / "shapes").exists()
    assert len(children) >= 2

    def ended(pid):
        stat = pathlib.Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"

    wait_until(lambda: all(map(ended, children)))


@pytest.mark.parametrize(
    "change", [{"train": 0}, {"test": -1}, {"seed": -1}, {"test": 10**7}, {"format": "webdataset"}]
)
def test_settings_out_of_range_are_refused(tmp_path, change):
    with pytest.raises(UserError, match=f"--{next(iter(change))}"):
        builder.prepare(tmp_path / "shapes", builder.Settings(**change))
    assert list(tmp_path.iterdir()) == []


def test_splits_of_no_clips_are_left_out(tmp_path):
    out = tmp_path / "shapes"
    builder.prepare(out, builder.Settings(train=3, validation=0, test=0, compositional=0))
    assert list(records(out)) == ["train"]
    assert {path.stem for path in out.glob("*.jsonl")} - {"cls_train"} == {"qa_train", "mc_train", "qa_answers"}
    assert [path.name for path in out.glob("clips_*.txt")] == ["clips_train.txt"]


# --- Splits -----------------------------------------------------------------------------------------------------------


def by_split(plan):
    out = collections.defaultdict(list)
    for scene in plan:
        out[scene.split].append(scene.caption)
    return out


@pytest.mark.parametrize("seed", [0, 7])
def test_captions_of_the_splits_are_disjoint_and_unique_outside_train(seed):
    captions = by_split(scenes.plan(DEFAULT_COUNTS, seed))
    assert {split: len(rows) for split, rows in captions.items()} == DEFAULT_COUNTS
    for split in ("validation", "test", "test_compositional"):
        assert len(set(captions[split])) == len(captions[split])
    seen = [set(rows) for rows in captions.values()]
    assert sum(map(len, seen)) == len(set().union(*seen))


def test_held_out_pairings_are_in_every_compositional_clip_and_nowhere_else(plan):
    for split, captions in by_split(plan).items():
        for caption in captions:
            pairings = {(e["color"], e["shape"]) for e in read(caption)}
            assert bool(pairings & HELD_OUT) == (split == "test_compositional"), caption


def test_train_shows_every_word_and_every_other_pairing(plan):
    events = [e for caption in by_split(plan)["train"] for e in read(caption)]
    pairings = {(e["color"], e["shape"]) for e in events}
    assert len(pairings) == 7 * 5 - len(HELD_OUT)
    assert len({(e["motion"], e["shape"]) for e in events}) == 9 * 5 - 1  # a circle cannot be seen spinning


def test_objects_differ_and_the_share_of_single_events_is_as_stated(plan):
    for split, captions in by_split(plan).items():
        parsed = [read(caption) for caption in captions]
        assert np.mean([len(events) == 1 for events in parsed]) == pytest.approx(0.3, abs=0.005), split
        for events in parsed:
            assert len({(e["color"], e["shape"]) for e in events}) == len(events)


# --- Questions --------------------------------------------------------------------------------------------------------

NUMBERS = ("zero", "one", "two")
DESCRIPTION = re.compile(
    r"the (?:(small|large) )?(?:(red|orange|yellow|green|cyan|blue|purple) )?"
    r"(circle|square|triangle|star|cross|object)(?: that (.+?))?"
)


def described(text, events):
    """Position of the only event that the description fits."""
    parts = DESCRIPTION.fullmatch(text)
    assert parts, text
    size, color, shape, motion = parts.groups()
    wanted = {"size": size, "color": color, "shape": None if shape == "object" else shape, "motion": motion}
    fits = [i for i, e in enumerate(events) if all(v is None or e[k] == v for k, v in wanted.items())]
    assert len(fits) == 1, (text, events)
    return fits[0]


def answer_by_caption(question, caption):
    """Answers a question from the caption alone."""
    events = read(caption)
    if m := re.fullmatch(r"what (color|shape) is the object that acts (first|second)\?", question):
        return events[("first", "second").index(m[2])][m[1]]
    if m := re.fullmatch(r"does (.+) act before (.+)\?", question):
        one, other = described(m[1], events), described(m[2], events)
        assert one != other
        return "yes" if one < other else "no"
    if m := re.fullmatch(r"what (color|shape) is (.+)\?", question):
        return events[described(m[2], events)][m[1]]
    if m := re.fullmatch(r"is (.+) small or large\?", question):
        return events[described(m[1], events)]["size"]
    if m := re.fullmatch(r"what does (.+) do\?", question):
        return events[described(m[1], events)]["motion"]
    m = re.fullmatch(r"how many (?:(\w+) )?(\w+) are there\?", question)
    assert m, question
    word = m[1] or {"crosses": "cross"}.get(m[2], m[2].removesuffix("s"))
    return NUMBERS[sum(word == "object" or word in e.values() for e in events)]


@pytest.fixture(scope="module", params=["test", "train"])
def some_scenes(plan, request):
    """256 clips of a split."""
    return [scene for scene in plan if scene.split == request.param][:256]


@pytest.fixture(scope="module")
def test_scenes(plan):
    return [scene for scene in plan if scene.split == "test"]


def test_answers_follow_from_the_captions(some_scenes):
    captions = {scene.clip_id: scene.caption for scene in some_scenes}
    rows = questions.question_answering(some_scenes)
    assert len({row["question_id"] for row in rows}) == len(rows)
    for row in rows:
        assert row["answer"] == answer_by_caption(row["question"], captions[row["clip_id"]]), row


def test_every_type_of_question_is_there_and_answers_are_balanced(some_scenes):
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for row in questions.question_answering(some_scenes):
        counts[row["type"]][row["answer"]] += 1
    assert set(counts) == {"color", "shape", "size", "motion", "count", "order"}
    assert all(set(answers) <= set(questions.ANSWERS) for answers in counts.values())
    for kind in ("color", "shape", "size", "motion"):
        assert max(counts[kind].values()) <= 1.3 * min(counts[kind].values()), counts[kind]
    assert abs(counts["order"]["yes"] - counts["order"]["no"]) <= 2
    assert max(counts["count"].values()) <= 0.5 * counts["count"].total()
    assert len(set(questions.ANSWERS)) == len(questions.ANSWERS)


def test_choices_hold_the_truth_once_and_four_distinct_falsehoods(test_scenes):
    answers: collections.Counter = collections.Counter()
    for scene in test_scenes:
        row = questions.multiple_choice(scene)
        assert row["options"][row["answer"]] == scene.caption and row["clip_id"] == scene.clip_id
        assert len(set(row["options"])) == len(row["options"]) == 5
        truth = read(scene.caption)
        for option in row["options"]:
            events = read(option)
            assert len(events) == len(truth)
            assert not any(e["shape"] == "circle" and e["motion"] == "spins" for e in events)
            assert not {(e["color"], e["shape"]) for e in events} & HELD_OUT
        answers[row["answer"]] += 1
    assert len(answers) == 5 and max(answers.values()) < 2 * min(answers.values())


def test_wrong_choices_are_near_misses(test_scenes):
    reordered = rebound = 0
    for scene in test_scenes:
        row, truth = questions.multiple_choice(scene), read(scene.caption)
        for option in row["options"]:
            if option == scene.caption:
                continue
            events = read(option)
            same_words = sorted(re.findall(r"\w+", option)) == sorted(re.findall(r"\w+", scene.caption))
            changed = sum(a[k] != b[k] for a, b in zip(events, truth) for k in a)
            assert same_words or changed == 1, (scene.caption, option)
            reordered += events == truth[::-1]
            rebound += same_words and events != truth[::-1]
        if len(truth) == 2:
            assert scenes.caption(scene.events[::-1]) in row["options"]
    two = sum(len(scene.events) == 2 for scene in test_scenes)
    assert reordered == two and rebound > two


def test_no_wrong_choice_in_training_is_true_of_a_clip_of_another_split(tmp_path):
    plan = scenes.plan({"train": 60, "validation": 300, "test": 300, "test_compositional": 100}, 2)
    questions.write(tmp_path, plan)
    evaluated = {scene.caption for scene in plan if scene.split != "train"}
    captions = {scene.clip_id: scene.caption for scene in plan}
    train = [scene for scene in plan if scene.split == "train"]
    unrestricted = {option for scene in train for option in questions.multiple_choice(scene)["options"]}
    assert unrestricted & evaluated
    rows = read_lines(tmp_path / "mc_train.jsonl")
    assert [row["clip_id"] for row in rows] == [scene.clip_id for scene in train]
    for row in rows:
        assert len(set(row["options"])) == 5 and not set(row["options"]) & evaluated
        assert row["options"][row["answer"]] == captions[row["clip_id"]]


# --- Classes and tables -----------------------------------------------------------------------------------------------


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_classes_are_the_motions_of_the_clips_with_one_event(plan):
    train = [scene for scene in plan if scene.split == "train"]
    rows = questions.classification(train)
    expected = [(s.clip_id, read(s.caption)[0]["motion"]) for s in train if len(read(s.caption)) == 1]
    assert [(row["clip_id"], row["label"]) for row in rows] == expected
    counts = collections.Counter(row["label"] for row in rows)
    assert len(counts) == 9 and max(counts.values()) <= 1.7 * min(counts.values()), counts


def test_the_answer_list_holds_every_answer_most_frequent_in_training_first(tfds_directory):
    rows = read_lines(tfds_directory / "qa_answers.jsonl")
    asked = collections.Counter(row["answer"] for row in read_lines(tfds_directory / "qa_train.jsonl"))
    assert {row["answer"]: row["count"] for row in rows} == {a: asked[a] for a in questions.ANSWERS}
    assert rows == sorted(rows, key=lambda row: (-row["count"], row["answer"]))


def test_tables_of_every_split_open_with_the_clips_of_that_split(tfds_directory):
    stored = {row["clip_id"].decode(): row["video"] for rows in records(tfds_directory).values() for row in rows}
    config = config_lib.update(config_lib.defaults(), {"input.path": str(tfds_directory)})
    for split, count in SETTINGS.counts().items():
        for table, kind in (("qa", "question_answering"), ("mc", "multiple_choice"), ("cls", "classification")):
            source = sources.open_source(config.input, f"{table}_{split}")
            sources.check_task(source, kind, config.input)
            rows = read_lines(tfds_directory / f"{table}_{split}.jsonl")
            assert len(source) == len(rows) and (table == "cls" or len({row["clip_id"] for row in rows}) == count)
            for i, row in enumerate(rows):
                record = source[i]
                assert (record.clip_id, record.video) == (row["clip_id"], stored[row["clip_id"]])
                assert record.caption == row.get("question", "") and record.type == row.get("type", "")
                assert record.answer == str(row.get("answer", row.get("label")))
                assert list(record.options) == row.get("options", [])
