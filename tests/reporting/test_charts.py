"""Axes, thinning and numbers of the small drawings."""

import re

import numpy as np
import pytest

from vlp_jax.reporting import charts
from vlp_jax.reporting.html import Html, tag


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 328, [0, 100, 200, 300, 400]), (0.9, 1.28, [0.9, 1.0, 1.1, 1.2, 1.3]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
)
def test_ticks_are_round_and_span_the_values(low, high, expected):
    np.testing.assert_allclose(charts.ticks(low, high, 4), expected, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 3.0, -2e-9, 1e21])
def test_a_flat_line_has_ticks_on_both_sides(value):
    found = charts.ticks(value, value, 4)
    assert found[0] < value < found[-1] or (found[0] <= value <= found[-1] and found[0] < found[-1])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.00001, "1e-5"), (1.5, "1.5"), (42000, "42k"), (3.03e13, "30.3T"), (999.9, "999.9"), (-2500, "-2.5k")],
)
def test_numbers_are_short(value, text):
    assert charts.short(value) == text


def test_a_long_line_is_thinned_but_keeps_its_spikes_and_ends():
    values = np.zeros(10_000)
    values[7777] = 1e3
    drawing = charts.chart([charts.Line(0, np.arange(10_000.0), values)], "step", "loss")
    (points,) = re.findall(r'points="([^"]*)"', drawing)
    xy = np.array([pair.split(",") for pair in points.split()], float)
    assert len(xy) < 400 and xy[:, 1].min() < 20 and (np.diff(xy[:, 0]) >= 0).all()
    assert xy[0, 0] == pytest.approx(46, abs=0.1) and xy[-1, 0] == pytest.approx(350, abs=0.1)


def test_values_that_are_not_finite_part_a_line_and_lone_ones_are_dots():
    values = np.array([1, 2, np.nan, 3, np.inf, 2, 1])
    drawing = charts.chart([charts.Line(9, np.arange(7.0), values)], "step", "loss")
    assert drawing.count("<polyline") == 2 and drawing.count("<circle") == 1
    assert 'stroke-dasharray="6 3"' in drawing and "run2" in drawing  # the tenth run is told from the third
    assert "no finite value" in charts.chart([charts.Line(0, np.arange(2.0), np.full(2, np.nan))], "step", "loss")


def test_texts_and_attributes_are_escaped_and_html_is_not():
    made = tag("p", "a < b & c", Html("<b>x</b>"), title='"&<', class_="q", hidden=True, lang=None)
    assert made == '<p title="&quot;&amp;&lt;" class="q" hidden>a &lt; b &amp; c<b>x</b></p>'
