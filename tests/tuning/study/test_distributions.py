import json
import math

import keras_tuner
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_tuner.engine import hyperparameters as kinds
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)
from optuna.samplers import RandomSampler

from keras_adamax_tuning.study import distributions

names = st.text("abc_ ", min_size=1, max_size=6)
finite = st.floats(-1e6, 1e6, allow_subnormal=False)
positive = st.floats(1e-3, 1e3)


@st.composite
def ints(draw):
    sampling = draw(st.sampled_from(["linear", "log", "reverse_log"]))
    low = draw(st.integers(-99 if sampling == "linear" else 1, 99))
    high = low + draw(st.integers(0, 500))
    step = draw(st.none() | st.integers(2, 7))
    return kinds.Int("i", low, high, step=step, sampling=sampling)


@st.composite
def floats(draw):
    sampling = draw(st.sampled_from(["linear", "log", "reverse_log"]))
    low, high = sorted(
        draw(st.tuples(*[finite if sampling == "linear" else positive] * 2))
    )
    step = None
    if draw(st.booleans()):
        step = draw(
            st.sampled_from(
                [1.5, 2, 10] if sampling != "linear" else [0.1, 0.25, 3]
            )
        )
        if sampling == "linear":
            low = round(low, 2)
            high = low + draw(st.integers(0, 30)) * step
    return kinds.Float("f", low, high, step=step, sampling=sampling)


choices = st.one_of(
    st.lists(st.integers(-9, 9), min_size=1),
    st.lists(finite, min_size=1),
    st.lists(st.text(max_size=3), min_size=1),
    st.lists(st.booleans(), min_size=1),
).map(lambda values: kinds.Choice("c", values))
booleans = st.just(kinds.Boolean("b"))
searched = st.one_of(ints(), floats(), choices, booleans)


def allowed(hp, value) -> bool:
    """What KerasTuner's documentation allows, worked out on its own."""
    if isinstance(hp, kinds.Boolean):
        return value is True or value is False
    if isinstance(hp, kinds.Choice):
        return any(type(v) is type(value) and v == value for v in hp.values)
    kind = int if isinstance(hp, kinds.Int) else float
    if type(value) is not kind or not hp.min_value <= value <= hp.max_value:
        return False
    if hp.step is None:
        return True
    if hp.sampling == "linear":
        steps = (value - hp.min_value) / hp.step
        return math.isclose(steps, round(steps), abs_tol=1e-6)
    if hp.sampling == "reverse_log":
        value = hp.max_value + hp.min_value - value
    steps = math.log(value / hp.min_value, hp.step)
    # A power may have been rounded to an integer.
    tolerance = 1 / hp.min_value if kind is int else 1e-6
    return abs(steps - round(steps)) <= tolerance


@settings(max_examples=300, deadline=None)
@given(searched, st.integers(0, 2**32 - 1))
def test_a_sample_of_every_kind_is_what_keras_tuner_allows(hp, seed):
    (parameter,) = distributions.parameters_of([hp])
    if parameter.distribution.single():
        stored = parameter.only_value()
    else:
        stored = RandomSampler(seed=seed).sample_independent(
            None, None, parameter.name, parameter.distribution
        )
    value = parameter.to_value(stored)
    assert allowed(hp, value), value
    # What comes back from the database is the same.
    internal = parameter.distribution.to_internal_repr(stored)
    again = parameter.distribution.to_external_repr(internal)
    assert parameter.to_value(again) == value
    assert parameter.distribution._contains(internal)


@settings(max_examples=200, deadline=None)
@given(searched, st.floats(0, 1, exclude_max=True))
def test_every_value_of_keras_tuner_is_there_and_back(hp, probability):
    value = hp.prob_to_value(probability)
    if isinstance(value, int | float) and hasattr(hp, "max_value"):
        # KerasTuner's rounding passes the end of its own range: this gives 5
        # for `Int(1, 4, sampling="reverse_log")` and 1 - 1e-16.
        value = min(value, hp.max_value)
    (parameter,) = distributions.parameters_of([hp])
    stored = parameter.to_stored(value)
    back = parameter.to_value(stored)
    if isinstance(value, float):
        assert math.isclose(back, value, rel_tol=1e-9, abs_tol=1e-9)
    else:
        assert back == value


@settings(max_examples=200, deadline=None)
@given(st.one_of(ints(), floats()).filter(lambda hp: hp.step is None))
def test_bounds_are_there_and_back(hp):
    (parameter,) = distributions.parameters_of([hp])
    d = parameter.distribution
    ends = sorted(parameter.to_value(end) for end in (d.low, d.high))
    assert ends == [hp.min_value, hp.max_value]


@given(searched)
@settings(max_examples=100, deadline=None)
def test_distributions_survive_the_database(hp):
    from optuna.distributions import distribution_to_json

    (parameter,) = distributions.parameters_of([hp])
    text = distribution_to_json(parameter.distribution)
    assert json_to_distribution(text) == parameter.distribution


@pytest.mark.parametrize(
    "hp, expected",
    [
        (kinds.Int("x", 2, 9, step=3), IntDistribution(2, 8, step=3)),
        (kinds.Int("x", 2, 9), IntDistribution(2, 9)),
        (
            kinds.Int("x", 2, 9, sampling="log"),
            IntDistribution(2, 9, log=True),
        ),
        (
            kinds.Int("x", 2, 40, step=2, sampling="log"),
            CategoricalDistribution([2, 4, 8, 16, 32]),
        ),
        (kinds.Float("x", -1, 2), FloatDistribution(-1, 2)),
        (
            kinds.Float("x", 0, 1, step=0.2),
            FloatDistribution(0, 1, step=0.2),
        ),
        (
            kinds.Float("x", 1e-3, 1, sampling="log"),
            FloatDistribution(1e-3, 1, log=True),
        ),
        (
            kinds.Float("x", 1e-3, 10, step=10, sampling="log"),
            CategoricalDistribution([1e-3, 1e-2, 0.1, 1.0, 10.0]),
        ),
        (kinds.Boolean("x"), CategoricalDistribution([False, True])),
        (kinds.Choice("x", ["a", "b"]), CategoricalDistribution(["a", "b"])),
    ],
)
def test_distributions(hp, expected):
    (parameter,) = distributions.parameters_of([hp])
    assert parameter.name == "x"
    if isinstance(expected, CategoricalDistribution) and isinstance(
        expected.choices[0], float
    ):
        assert parameter.distribution.choices == pytest.approx(expected.choices)
    else:
        assert parameter.distribution == expected


def test_reverse_log_has_most_of_its_samples_near_the_upper_end():
    hp = kinds.Float("x", 1.0, 1000.0, sampling="reverse_log")
    (parameter,) = distributions.parameters_of([hp])
    assert parameter.name == "x (mirrored)"
    sampler = RandomSampler(seed=0)
    values = [
        parameter.to_value(
            sampler.sample_independent(
                None, None, parameter.name, parameter.distribution
            )
        )
        for _ in range(300)
    ]
    # KerasTuner's own: a third of the samples in each decade from the top.
    assert 70 < sum(v > 991 for v in values) < 130
    assert 70 < sum(v < 901 for v in values) < 130


def test_a_fixed_value_is_not_sampled():
    assert distributions.parameters_of([kinds.Fixed("x", 3)]) == [None]


def test_an_unknown_kind_is_refused():
    class Strange(kinds.HyperParameter):
        pass

    with pytest.raises(TypeError, match="Int, Float, Choice, Boolean and"):
        distributions.parameters_of([Strange("x")])


def test_one_name_under_two_conditions_is_two_parameters():
    hp = keras_tuner.HyperParameters()
    hp.Choice("kind", ["a", "b", "c"])
    hp.Float("x", 0.0, 1.0, parent_name="kind", parent_values=["a"])
    hp.Float("x", 5.0, 9.0, parent_name="kind", parent_values=["b"])
    hp.Float("x", 0.0, 1.0, parent_name="kind", parent_values=["c"])
    found = distributions.parameters_of(hp.space)
    assert [p.name for p in found] == [
        "kind",
        "x",
        "x if kind in ['b']",
        "x",
    ]


def brute_force(hp):
    """The grid, by trying every combination of every value."""
    import itertools

    # KerasTuner lists integers with a multiplicative step as floats.
    lists = [
        [int(v) if isinstance(h, kinds.Int) else v for v in h.values]
        for h in hp.space
    ]
    found = set()
    for values in itertools.product(*lists):
        active = {}
        for h, value in zip(hp.space, values, strict=True):
            if all(c.is_active(active) for c in h.conditions):
                active[h.name] = value
        found.add(json.dumps(active, sort_keys=True))
    return found


def test_the_grid_is_complete_and_without_duplicates():
    hp = keras_tuner.HyperParameters()
    hp.Choice("kind", ["a", "b"])
    hp.Int("n", 1, 3, parent_name="kind", parent_values=["a"])
    with hp.conditional_scope("kind", ["b"]):
        hp.Boolean("flag")
        with hp.conditional_scope("flag", [True]):
            hp.Float("x", 0, 1, step=0.5)
    hp.Fixed("f", 7)
    hp.Int("p", 1, 8, step=2, sampling="log")
    combinations = list(distributions.grid(hp.space))
    texts = [json.dumps(c, sort_keys=True) for c in combinations]
    assert len(texts) == len(set(texts)) == (3 + 1 + 3) * 4
    assert set(texts) == brute_force(hp)
    for i, combination in enumerate(combinations):
        assert distributions.nth_of_grid(hp.space, i) == combination
    assert distributions.nth_of_grid(hp.space, len(combinations)) is None


@given(searched)
@settings(max_examples=100, deadline=None)
def test_finite_values_are_all_allowed(hp):
    values = distributions.finite_values(hp)
    if values is None:
        assert isinstance(hp, kinds.Float) and hp.step is None
    else:
        assert values and all(allowed(hp, v) for v in values)
        assert len(set(values)) == len(values)


def test_the_grid_names_the_hyperparameter_that_is_not_finite():
    hp = keras_tuner.HyperParameters()
    hp.Int("units", 1, 3)
    hp.Float("rate", 0.1, 0.5)
    with pytest.raises(ValueError, match="'rate', any number from 0.1 to 0.5"):
        distributions.grid(hp.space)


def test_a_description_is_strict_json_and_leaves_defaults_out():
    hp = keras_tuner.HyperParameters()
    hp.Choice("kind", ["a", "b"], default="b")
    hp.Int("n", 1, 3, parent_name="kind", parent_values=["a"])
    described = distributions.describe(hp.space)
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert described[1]["conditions"] == [{"name": "kind", "values": ["a"]}]
    other = keras_tuner.HyperParameters()
    other.Choice("kind", ["a", "b"])
    other.Int("n", 1, 3, default=2, parent_name="kind", parent_values=["a"])
    assert distributions.describe(other.space) == described
