"""Odd, damaged and hostile media: the right frames or a reason, never a crash, a hang or another clip's frames.

The corpus is decoded in a process of its own, so that a crash inside libav fails a test and not the test run.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.input import bad_media
from vlp_jax.input import pipeline, video
from vlp_jax.input.sources import Record
from vlp_jax.input.tokenizer import open_tokenizer

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Decodes a part of the corpus; returns outcome by name."""
    done = {}

    def decode(part):
        if part not in done:
            command = [sys.executable, "-m", "tests.input.bad_media", part, str(tmp_path_factory.mktemp("media"))]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "SVT_LOG": "0"}
            result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
            lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
            assert result.returncode == 0, f"died at {lines[-1:]}: {result.stderr[-2000:]}"
            done[part] = {line["name"]: line for line in lines if "name" in line}
        return done[part]

    return decode


@pytest.mark.parametrize("part", bad_media.CORPUS)
def test_every_file_gives_the_right_frames_or_a_reason(part, outcomes):
    results = outcomes(part)
    wrong = []
    count = 0
    for case in bad_media.CORPUS[part]():
        count += 1
        result = results[case.name]
        error = result.get("error")
        assert result["same by path"], case.name
        if error is None:
            assert case.expect != "error", f"{case.name}: frames came out, expected an error"
            if not result["right"]:
                wrong.append(case)
        else:
            assert case.expect != "frames", f"{case.name}: {error}"
            assert case.reason in error and error and "\n" not in error, f"{case.name}: {error}"
    # Video formats carry no checksum: a byte may turn a frame that others refer to into one that seems not to matter,
    # and skipping it then changes what a full decode would show. One in a few hundred changed bytes does.
    assert all(case.sound for case in wrong), [case.name for case in wrong]
    assert len(wrong) <= count // 200, [case.name for case in wrong]


@pytest.mark.parametrize("part", bad_media.CORPUS)
def test_no_file_takes_much_memory(part, outcomes):
    for name, result in outcomes(part).items():
        assert result["peak_mb"] < 600, name  # 16,000 x 16,000 pixels would take 768 MB as RGB alone


def test_bad_rows_keep_their_place_with_their_reason(make_clip, model, tiny_config):
    """Through the pipeline: an empty caption and a bad clip stay as rows without effect; nothing is swapped."""
    good = make_clip(count=16)
    rows = [(good, "a red square", None), (good, "", None), (good[:300], "a blue one", None)]
    rows += [(good, "x" * 1_000_000, None), (good, "a small circle", (0.2, 0.6)), (good, "a large circle", (7.0, 9.0))]

    class Source:
        name = "rows"
        columns = frozenset({"caption"})

        def __len__(self):
            return len(rows)

        def __getitem__(self, index):
            clip, caption, span = rows[index]
            return Record(clip, caption, f"clip{index}", span)

    config = tiny_config()
    tokenizer = open_tokenizer(model, config.input.max_text_tokens)
    (batch,) = pipeline.evaluation_batches(config, Source(), tokenizer, batch_size=6)
    assert batch.batch.valid.tolist() == [True, False, False, True, True, False]
    assert batch.clip_ids == [f"clip{i}" for i in range(6)]
    assert batch.errors[1] == "empty caption"
    assert batch.errors[2].startswith("not a readable video")
    assert batch.errors[5] == "no frame lies in the span 7 to 9 s: the clip ends at 0.64 s"
    assert not batch.batch.video[[1, 2, 5]].any()
    size = config.input.image_size
    for row, span in ((0, None), (3, None), (4, (0.2, 0.6))):
        expected = video.decode(good, frames=config.input.frames, size=size, span=span)
        np.testing.assert_array_equal(batch.batch.video[row], expected)
