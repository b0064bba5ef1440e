"""Recall and cost under other keep rates and mask ratios: those of the evaluator, of a run that has them as its own."""

import numpy as np
import pytest

from vlp_jax import analysis
from vlp_jax.analysis import trade_off
from vlp_jax.evaluation.retrieval import Retrieval
from vlp_jax.types import UserError

SIZE = {"input.image_size": 24, "evaluation.batch_size": 4, "evaluation.bootstrap": 50, "model.pruning.keep_rate": 0.5}


@pytest.fixture(scope="module")
def loaded(make_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("what_if") / "run"
    make_run(out, SIZE)
    return analysis.load(out)


@pytest.fixture(scope="module")
def points(loaded):
    return analysis.what_if(loaded, keep_rates=(1.0, 0.5, 0.2), mask_ratios=(0.0, 0.5, 0.8))


def evaluated(loaded):
    setup = loaded.run.setup
    args = (setup.graph, setup.abstract.params, loaded.config, loaded.source(), loaded.run.tokenizer, setup.mesh)
    return Retrieval(*args).run(loaded.run.params)


def test_recall_and_intervals_are_the_evaluators(loaded, points):
    for point, changes in [(points[1], {}), (points[2], {"model.pruning.keep_rate": 0.2}), (points[3], {})]:
        result = evaluated(loaded.changed(changes))
        for direction in ("text_to_video", "video_to_text"):
            assert point.recall[direction] == result[direction]["R@1"]
            assert list(point.interval[direction]) == result["intervals"][f"{direction}/R@1"]


def test_points_say_what_they_are_and_cost_less_the_more_is_dropped(points):
    assert [point.value for point in points] == [1.0, 0.5, 0.2, 0.0, 0.5, 0.8]
    assert [point.knob.rsplit(".", 1)[1] for point in points] == ["keep_rate"] * 3 + ["ratio"] * 3
    assert [point.is_own for point in points] == [False, True, False, True, False, False]
    costs = np.array([point.gflops for point in points])
    assert (np.diff(costs[:3]) < 0).all() and (np.diff(costs[3:]) < 0).all() and costs[3] == costs[1]


def test_hidden_patches_do_not_count(loaded):
    """What a mask hides may be anything: the masks of a clip are the same, and the points with them."""
    clips = loaded.clips(4)
    kept = analysis.kept_patches(loaded.changed({"model.masking.ratio": 0.5}), clips, masked=True, seed=3)
    rows = []
    variant, embed = trade_off._variant(loaded, "model.masking.ratio", 0.5)
    for paint in (0, 255):
        video = clips.batch.video.copy()
        pixels = np.kron(kept.visible_BxTxN.reshape(4, 3, 3, 3), np.ones((8, 8))) > 0
        video[~pixels] = paint
        rows.append(variant.apply(embed, video, clips.batch.index, 3))
    np.testing.assert_array_equal(rows[0], rows[1])
    assert (variant.apply(embed, video, clips.batch.index, 4) != rows[0]).any()


def test_a_clip_that_does_not_decode_counts_as_missed(loaded, monkeypatch):
    real = type(loaded.source()).__getitem__

    def broken(self, index):
        record = real(self, index)
        return type(record)(b"no video", record.caption, record.clip_id) if index == 2 else record

    monkeypatch.setattr(type(loaded.source()), "__getitem__", broken)
    point = analysis.what_if(loaded, keep_rates=(0.5,), mask_ratios=())[0]
    result = evaluated(loaded)
    assert result["undecodable"] == 1
    assert point.recall == {name: result[name]["R@1"] for name in ("text_to_video", "video_to_text")}


def test_the_figure_has_a_line_for_each_knob_and_a_ring_around_the_own_setting(loaded, points):
    figure = analysis.draw_what_if(loaded, points)
    for axis, direction in zip(figure.axes, ("text_to_video", "video_to_text")):
        lines = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
        assert set(lines) == {"keep rate of pruning", "mask ratio"}
        own = sorted((point.gflops, point.recall[direction]) for point in points[:3])
        np.testing.assert_allclose(lines["keep rate of pruning"].get_xydata(), own)
    assert "GFLOPs" in figure.axes[0].get_xlabel() and figure.axes[0].get_ylabel() == "R@1, %"
    assert len(analysis.draw_what_if(loaded, points[:1]).axes) == 2


def test_what_a_run_cannot_do_is_refused_by_the_knob(loaded, make_run, tmp_path):
    dense = {"model.masking.kind": "none", "model.masking.ratio": 0.0, "model.masking.unmasked_share": 0.0}
    make_run(tmp_path / "run", {**dense, "model.pruning.layers": (), "loss.mvm": 0.0})
    other = analysis.load(tmp_path / "run")
    for call, message in [
        (lambda: analysis.what_if(loaded, keep_rates=(), mask_ratios=()), "expected a setting or more"),
        (lambda: analysis.what_if(loaded, keep_rates=(0.0,)), r"model.pruning.keep_rate = 0.0: expected .* above 0"),
        (lambda: analysis.what_if(loaded, keep_rates=(1.5,)), "model.pruning.keep_rate = 1.5"),
        (lambda: analysis.what_if(loaded, mask_ratios=(1.0,)), r"model.masking.ratio = 1.0: expected .* below 1"),
        (lambda: analysis.what_if(loaded, mask_ratios=(0.99,)), "with a visible patch left"),
        (lambda: analysis.draw_what_if(loaded, []), "expected what what_if returned"),
        (lambda: analysis.what_if(other), r"config.model.pruning.layers = \(\)"),
        (lambda: analysis.what_if(other, keep_rates=()), "config.model.masking.kind = 'none'"),
    ]:
        with pytest.raises(UserError, match=message):
            call()
