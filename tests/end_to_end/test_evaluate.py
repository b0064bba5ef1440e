"""The evaluation binary, on the checkpoint of a miniature run."""

import json
import shutil
import sys

import numpy as np

from vlp_jax.evaluation import ranking


def evaluate(workdir, *flags):
    return [sys.executable, "-m", "vlp_jax.evaluate", f"--workdir={workdir}", *flags]


def test_retrieval_prints_a_table_and_writes_the_rank_of_every_query(finished, run):
    done = run(evaluate(finished))
    assert done.returncode == 0, done.stderr
    assert "10 captions, 10 clips; chance R@1 10.00" in done.stdout
    result = json.loads((finished / "evaluation" / "retrieval_test_12.json").read_text())
    for direction in ("text_to_video", "video_to_text"):
        ranks = np.array([row[f"{direction}_rank"] for row in result["per_query"]])
        assert len(ranks) == 10 and ranks.min() >= 1 and ranks.max() <= 10
        assert result[direction] == ranking.summarise(ranks)
        assert f"{result[direction]['mean_rank']:.2f}" in done.stdout
        low, high = result["intervals"][f"{direction}/mean_rank"]
        assert f"{low:.2f}-{high:.2f}" in done.stdout


def test_an_earlier_checkpoint_can_be_named_and_an_absent_one_is_refused(finished, run):
    done = run(evaluate(finished, "--checkpoint=8"))
    assert done.returncode == 0 and "step 8" in done.stdout
    done = run(evaluate(finished, "--checkpoint=5"))
    assert done.returncode == 2 and "step 5" in done.stderr and "8, 12" in done.stderr


def test_no_batch_size_and_no_number_of_devices_changes_a_rank(finished, run, eight_devices):
    ranks = []
    for size, devices in ((3, {}), (10, {}), (4, eight_devices)):
        done = run(evaluate(finished, "--rerank=4", f"--batch_size={size}"), **devices)
        assert done.returncode == 0, done.stderr
        result = json.loads((finished / "evaluation" / "retrieval_test_12_rerank4.json").read_text())
        ranks.append([(row["text_to_video_rank"], row["video_to_text_rank"]) for row in result["per_query"]])
    assert ranks[0] == ranks[1] == ranks[2]


def test_rerank_reorders_only_the_shortlist(finished, run):
    plain, reranked = (run(evaluate(finished, f"--rerank={k}")) for k in (0, 4))
    assert plain.returncode == reranked.returncode == 0, reranked.stderr
    read = lambda name: json.loads((finished / "evaluation" / name).read_text())["per_query"]
    before, after = read("retrieval_test_12.json"), read("retrieval_test_12_rerank4.json")
    for a, b in zip(before, after):
        if a["text_to_video_rank"] > 4:
            assert a["text_to_video_rank"] == b["text_to_video_rank"]
        else:
            assert b["text_to_video_rank"] <= 4


def test_the_model_is_the_checkpoints_own_whatever_became_of_the_config_file(finished, tmp_path, run):
    workdir = shutil.copytree(finished, tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["model"]["vision"]["attention"] = "joint" if config["model"]["vision"]["attention"] == "frame" else "frame"
    (workdir / "config.json").write_text(json.dumps(config))
    done = run(evaluate(workdir))
    assert done.returncode == 0, done.stderr
    read = lambda folder: json.loads((folder / "evaluation" / "retrieval_test_12.json").read_text())["per_query"]
    assert run(evaluate(finished)).returncode == 0
    assert read(workdir) == read(finished)


def test_results_on_other_data_are_kept_apart(finished, tmp_path, run):
    from data.moving_shapes import builder

    other = tmp_path / "other"
    builder.prepare(other, builder.Settings(train=1, validation=0, test=3, compositional=0), 1)
    assert run(evaluate(finished)).returncode == 0
    own = finished / "evaluation" / "retrieval_test_12.json"
    before = own.read_bytes()
    done = run(evaluate(finished, f"--input_path={other}"))
    assert done.returncode == 0, done.stderr
    assert own.read_bytes() == before
    (result,) = (finished / "evaluation").glob("retrieval_test_12_*other.json")
    assert json.loads(result.read_text())["clips"] == 3


def test_reconstruction_draws_a_picture(finished, run):
    done = run(evaluate(finished, "--task=reconstruction", "--clips=2"))
    assert done.returncode == 0, done.stderr
    data = (finished / "evaluation" / "reconstruction_test_12.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 5000
    done = run(evaluate(finished, "--task=reconstruction", "--clips=2", "--frames=2"))
    assert done.returncode == 0, done.stderr
    assert (finished / "evaluation" / "reconstruction_test_12_frames2.png").is_file()


def test_wrong_flags_end_with_one_clear_message(finished, tmp_path, run):
    for flags, expected in (
        (evaluate(tmp_path), "holds no checkpoints"),
        (evaluate(finished, "--task=retreival"), "expected one of retrieval, question_answering"),
        (evaluate(finished, "--split=tset"), "tset"),
    ):
        done = run(flags)
        assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr, done.stderr
