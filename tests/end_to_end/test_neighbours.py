"""Singularity in its two stages by the binaries, and the ensembles of its frames at test."""

import json
import sys


def test_two_stages_and_every_ensemble(tmp_path, command, run):
    plain = {"model.pruning.layers": (), "model.selection.frames": 0}
    first, second = tmp_path / "stage1", tmp_path / "stage2"
    one = run(command(first, config="configs/singularity.py:tiny_stage1", **plain, **{"input.frames": 1, "steps": 4}))
    assert one.returncode == 0, one.stderr
    two = command(second, config="configs/singularity.py:tiny_stage2", **plain, steps=4, init_from=str(first))
    two = run(two)
    assert two.returncode == 0 and "created: temporal" in two.stderr, two.stderr
    found = {}
    for ensemble in ("concat", "mean", "lse"):
        flags = ["--frames=3", "--rerank=10", f"--ensemble={ensemble}", "--split=test"]
        done = run([sys.executable, "-m", "vlp_jax.evaluate", f"--workdir={first}", *flags])
        assert done.returncode == 0, done.stderr
        late = "" if ensemble == "concat" else f"_{ensemble}"
        result = json.loads((first / "evaluation" / f"retrieval_test_4_rerank10_frames3{late}.json").read_text())
        assert result["ensemble"] == ensemble and result["frames"] == 3
        found[ensemble] = [row["text_to_video_rank"] for row in result["per_query"]]
    # Every item is reranked, so that the order is the ensemble's alone.
    assert found["concat"] != found["mean"] or found["mean"] != found["lse"]
    done = run([sys.executable, "-m", "vlp_jax.evaluate", f"--workdir={first}", "--ensemble=sum"])
    assert done.returncode == 2 and "config.evaluation.ensemble = 'sum'" in done.stderr, done.stderr
