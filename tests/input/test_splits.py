"""Which splits may share clips, against the records that they hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp_jax import config as config_lib
from vlp_jax.input import splits


def records(split, count):
    """The records that a TFDS expression holds, `(split, number)`, where each split has `count`."""
    out = set()
    for term in split.split("+"):
        name, _, part = term.strip().removesuffix("]").partition("[")
        low, _, high = part.partition(":")
        percent = "%" in part
        # TFDS rounds a percentage by itself, the sign aside or not: half to even here.
        number = lambda x, percent=percent: round(float(x.strip("%")) * count / 100) if percent else int(x)
        out |= {(name, i) for i in range(count)[number(low) if low else None : number(high) if high else None]}
    return out


def bounds(unit, most):
    return st.one_of(st.just(""), st.integers(-most, most).map(lambda x: f"{x}{unit}"))


ONE_SLICE = st.one_of(
    st.just(""),
    st.builds("[{}:{}]".format, bounds("", 200), bounds("", 200)),
    st.builds("[{}:{}]".format, bounds("%", 100), bounds("%", 100)),
    st.builds("[{}:{}]".format, st.integers(0, 100), bounds("%", 100)),
)
SPLITS = st.lists(st.builds("{}{}".format, st.sampled_from(["train", "test"]), ONE_SLICE), min_size=1, max_size=3).map(
    "+".join
)


@given(SPLITS, SPLITS, st.sampled_from([1, 3, 103, 200]))
def test_slices_said_to_be_apart_share_no_record(one, other, count):
    assert splits.may_meet("tfds", one, other) == splits.may_meet("tfds", other, one)
    if not splits.may_meet("tfds", one, other):
        assert records(one, count).isdisjoint(records(other, count))


@given(st.tuples(*[st.integers(0, 100)] * 4), st.sampled_from(["", "%"]))
def test_slices_of_one_unit_are_apart_just_where_they_share_no_record(ends, unit):
    (a, b), (c, d) = sorted(ends[:2]), sorted(ends[2:])
    if a == b or c == d:
        return
    one, other = f"train[{a}{unit}:{b}{unit}]", f"train[{c}{unit}:{d}{unit}]"
    assert splits.may_meet("tfds", one, other) == (not records(one, 200).isdisjoint(records(other, 200)))


@pytest.mark.parametrize(
    ("kind", "one", "other", "meet"),
    [
        ("tfds", "train", "validation", False),
        ("tfds", "train", "train", True),
        ("tfds", "train[kept]", "train[held_out]", False),
        ("tfds", "train[held_out]", "train[held_out]", True),
        ("tfds", "train", "train[held_out]", True),
        ("tfds", "train[:80%]", "train[80%:]", False),
        ("tfds", "train[:80%]", "train[-20%:]", True),  # where 20% is rounded up
        ("tfds", "train[:-20%]", "train[-20%:]", False),
        ("tfds", "train[:12.5%]", "train[12.5%:]", False),
        ("tfds", "train", "train[:12.5%]", True),
        ("tfds", "train[:1_000]", "train[1000:]", False),
        ("tfds", "train[:2shard]", "train[1shard:]", True),
        ("tfds", "train[:10]", "train[10:20%]", True),
        ("tfds", "all", "train", True),
        ("tfds", "train[50%]", "train", True),
        ("tfds", "train[kept][held_out]", "train[kept]", True),
        ("tfds", "train[:80%]", "train[100:]", True),
        ("tfds", "train[:-100]", "train[-100:]", False),
        ("tfds", "train[:100]", "train[-100:]", True),
        ("tfds", "train+validation", "validation", True),
        ("tfds", "train + extra", "validation", False),
        ("tfds", "train[:80%][kept]", "train[80%:][held_out]", False),
        ("tfds", "train[:80%][kept]", "train[held_out]", True),
        ("table", "all", "split=test", True),
        ("table", "split=train", "split=test", False),
        ("table", "split=train|val", "split=test|val", True),
        ("table", "split=train", "set=test", True),
        ("table", "all[kept]", "all[held_out]", False),
        ("table", "test", "split=test", False),  # the default of config.evaluation.split, which no table has
        ("shards", "test", "shards=0..3", False),
        ("shards", "all", "shards=0..3", True),
        ("shards", "shards=0..3", "shards=4..9", False),
        ("shards", "shards=0..4", "shards=4..9", True),
    ],
)
def test_splits_of_each_kind_of_data(kind, one, other, meet):
    assert splits.may_meet(kind, one, other) is splits.may_meet(kind, other, one) is meet


def test_only_the_rest_of_a_training_split_is_called_a_part_of_it(tiny_config):
    config = tiny_config({"input.split": "train[kept]"})
    assert splits.held_out_of_training(config, "train[held_out]")
    for split in ("train[kept]", "train", "validation[held_out]"):
        assert not splits.held_out_of_training(config, split)
    config_lib.add_source(config, "other", weight=1, path="elsewhere", split="all[kept]")
    assert not splits.held_out_of_training(config, "all[held_out]")
