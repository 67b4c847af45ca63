import copy
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import keras_tuner
import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras.optimizers import schedules
from keras_tuner.engine import hyperparameters as kt_hyperparameters

import keras_adamax
from keras_adamax import TargetClipRate
from keras_adamax_tuning.space.adamax_clipped_space import (
    AdamaxClippedSpace,
    Range,
)
from keras_adamax_tuning.study.optuna_oracle import OptunaOracle

FAST = settings(max_examples=100, deadline=None, derandomize=True)
LEARNING_RATE_KINDS = [
    "constant",
    "warmup",
    "cosine",
    "exponential",
    "polynomial",
]
# A valid range of each argument; for what is searched as a distance from 1 it
# ends a good way off.
NUMBERS = {
    "learning_rate": (1e-7, 10.0),
    "beta_1": (0.0, 0.99999),
    "beta_2": (0.0, 0.99999),
    "epsilon": (1e-12, 1.0),
    "clip_multiplier": (1.0001, 1000.0),
    "clip_epsilon": (1e-9, 1.0),
    "weight_decay": (1e-9, 1.0),
}
NOTHING_SEARCHED = {
    "learning_rate": 0.001,
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-8,
    "clip_gradients": True,
    "clip_multiplier": 1.2,
    "clip_epsilon": 1e-4,
    "bias_correction": False,
    "weight_decay": None,
    "spike_threshold": None,
    "max_skipped_spikes": 5,
}
DISTANCES = {
    "beta_1": ("one_minus_beta_1", lambda x: 1 - x),
    "beta_2": ("one_minus_beta_2", lambda x: 1 - x),
    "clip_multiplier": ("clip_multiplier_minus_1", lambda x: x - 1),
}


def only(**arguments):
    """A space in which nothing is searched but what is given."""
    return AdamaxClippedSpace(**{**NOTHING_SEARCHED, **arguments})


@st.composite
def ranges(draw, low, high):
    a, b = draw(
        st.lists(
            st.floats(low, high, allow_subnormal=False),
            min_size=2,
            max_size=2,
            unique=True,
        ).filter(lambda ends: abs(ends[0] - ends[1]) > 1e-6 * max(ends))
    )
    a, b = min(a, b), max(a, b)
    return draw(
        st.sampled_from([(a, b), Range(a, b), Range(a, b, scale="linear")])
    )


@st.composite
def specifications(draw, name):
    low, high = NUMBERS[name]
    number = st.floats(low, high, allow_subnormal=False)
    values = [number, ranges(low, high)]
    items = number
    if name == "weight_decay":
        values.append(st.none())
        items = st.one_of(st.none(), number)
    values.append(st.lists(items, min_size=1, max_size=4, unique=True))
    return draw(st.one_of(*values))


@st.composite
def integer_specifications(draw, low=1, high=5000):
    a, b = sorted(
        draw(
            st.lists(
                st.integers(low, high), min_size=2, max_size=2, unique=True
            )
        )
    )
    return draw(
        st.sampled_from([a, (a, b), [a, b], Range(a, b, scale="linear")])
    )


@st.composite
def schedule_searches(draw, kinds):
    """A kind, a list of kinds, or a dictionary with parts."""
    chosen = draw(
        st.lists(st.sampled_from(sorted(kinds)), min_size=1, unique=True)
    )
    if draw(st.booleans()):
        return chosen if len(chosen) > 1 else chosen[0]
    return {
        kind: {
            part: draw(specification)
            for part, specification in kinds[kind].items()
            if draw(st.booleans())
        }
        for kind in chosen
    }


@st.composite
def spaces(draw):
    steps = integer_specifications()
    fraction = st.one_of(
        st.floats(0.01, 1.0), ranges(0.01, 1.0), st.just([0.5, 0.25])
    )
    arguments = {name: draw(specifications(name)) for name in NUMBERS}
    for name in ("clip_gradients", "bias_correction"):
        arguments[name] = draw(
            st.sampled_from([True, False, [True, False], [False]])
        )
    arguments["learning_rate_schedule"] = draw(
        schedule_searches(
            {
                "constant": {},
                "warmup": {"warmup_steps": steps},
                "cosine": {
                    "decay_steps": steps,
                    "alpha": fraction,
                    "warmup_steps": integer_specifications(low=0),
                },
                "exponential": {"decay_steps": steps, "decay_rate": fraction},
                "polynomial": {
                    "end_factor": fraction,
                    "warmup_steps": st.just((0, 100)),
                },
            }
        )
    )
    arguments["beta_2_schedule"] = draw(
        schedule_searches(
            {
                "constant": {},
                "exponential": {
                    "start_factor": ranges(1.0, 1000.0),
                    "half_life": steps,
                },
            }
        )
    )
    arguments["clip_multiplier_schedule"] = draw(
        schedule_searches(
            {
                "constant": {},
                "linear": {"start": ranges(1.001, 100.0), "num_steps": steps},
                "target_rate": {"target": ranges(0.0001, 0.5)},
            }
        )
    )
    # Above every target.
    arguments["spike_threshold"] = draw(
        st.sampled_from([None, 0.6, [None, 0.6], (0.6, 0.9)])
    )
    return AdamaxClippedSpace(
        **arguments,
        num_steps=draw(st.integers(1, 10_000)),
        optimizer_arguments=draw(
            st.sampled_from([None, {"global_clipnorm": 1.0, "use_ema": True}])
        ),
        name_prefix=draw(st.sampled_from(["", "encoder_"])),
    )


def sample(space, random):
    """Hyperparameters with a random value each, as KerasTuner draws them."""
    hp = keras_tuner.HyperParameters()
    space.declare(hp)
    for parameter in hp.space:
        if hp.is_active(parameter):
            hp.values[parameter.name] = parameter.prob_to_value(random())
        else:
            hp.values.pop(parameter.name, None)
    return hp


def through_json(item):
    text = json.dumps(
        keras.saving.serialize_keras_object(item), allow_nan=False
    )
    return keras.saving.deserialize_keras_object(json.loads(text))


def declared(space, **values):
    hp = keras_tuner.HyperParameters()
    hp.values.update(values)
    return hp, space.declare(hp)


def by_name(hp):
    return {parameter.name: parameter for parameter in hp.space}


# What a space is


def test_defaults_contain_the_original_and_start_there():
    hp = keras_tuner.HyperParameters()
    optimizer = AdamaxClippedSpace().build_optimizer(hp)
    assert optimizer.get_config() == keras_adamax.AdamaxClipped().get_config()
    for parameter in hp.space:
        value = hp.values[parameter.name]
        if hasattr(parameter, "min_value"):
            assert parameter.min_value < value < parameter.max_value
        else:
            assert value in parameter.values
    assert len(hp.space) == 10


def test_names_in_the_record():
    space = AdamaxClippedSpace(
        learning_rate_schedule=LEARNING_RATE_KINDS,
        beta_2_schedule=["constant", "exponential"],
        clip_multiplier_schedule=["constant", "linear"],
        num_steps=1000,
    )
    hp, _ = declared(space)
    assert list(by_name(hp)) == [
        "learning_rate",
        "learning_rate_schedule",
        "learning_rate_warmup_warmup_steps",
        "learning_rate_cosine_alpha",
        "learning_rate_exponential_decay_rate",
        "learning_rate_polynomial_end_factor",
        "learning_rate_polynomial_power",
        "one_minus_beta_1",
        "one_minus_beta_2",
        "beta_2_schedule",
        "beta_2_exponential_start_factor",
        "beta_2_exponential_half_life",
        "epsilon",
        "clip_gradients",
        "clip_multiplier_minus_1",
        "clip_multiplier_schedule",
        "clip_multiplier_linear_start_minus_1",
        "clip_multiplier_linear_num_steps",
        "clip_epsilon",
        "bias_correction",
        "weight_decay",
        "spike_threshold",
    ]


def test_a_fixed_value_is_not_searched():
    ramp = keras_adamax.LinearRamp(2.0, 1.2, 10)
    hp, arguments = declared(only(clip_multiplier=ramp, learning_rate=1))
    assert hp.space == []
    assert hp.values == {}
    assert arguments == {
        **NOTHING_SEARCHED,
        "clip_multiplier": ramp,
        "learning_rate": 1,
    }


def test_a_range_is_searched_on_its_scale():
    hp, _ = declared(
        only(
            beta_2=(0.9, 0.9999),
            clip_multiplier=Range(1.0, 3.0, scale="linear"),
            learning_rate=(1e-4, 1e-2),
        )
    )
    parameters = {
        name: (p.min_value, p.max_value, p.sampling)
        for name, p in by_name(hp).items()
    }
    assert parameters == {
        "learning_rate": (1e-4, 1e-2, "log"),
        "one_minus_beta_2": (0.0001, 0.1, "log"),
        "clip_multiplier": (1.0, 3.0, "linear"),
    }


def test_a_range_without_the_original_starts_in_its_middle():
    _, arguments = declared(
        only(
            learning_rate=(0.01, 1.0),
            beta_2=(0.9, 0.99),
            beta_1=Range(0.2, 0.4, scale="linear"),
        )
    )
    assert arguments["learning_rate"] == pytest.approx(0.1)
    assert arguments["beta_2"] == pytest.approx(1 - 10**-1.5)
    assert arguments["beta_1"] == pytest.approx(0.3)


def test_choices_of_kinds_that_keras_tuner_does_not_take():
    cosine = schedules.CosineDecay(0.1, 100)
    other = schedules.CosineDecay(0.2, 100)
    space = only(
        learning_rate=[cosine, 0.1, other],
        weight_decay=[None, 0, 0.5],
        bias_correction=[True, False],
        clip_epsilon=[0.5, 1],
    )
    hp, arguments = declared(space)
    assert {name: list(p.values) for name, p in by_name(hp).items()} == {
        "learning_rate": ["CosineDecay", "0.1", "CosineDecay_2"],
        "clip_epsilon": [0.5, 1.0],
        "bias_correction": [True, False],
        "weight_decay": ["None", "0", "0.5"],
    }
    # In a Choice they would be 1 and 0.
    assert type(by_name(hp)["bias_correction"]).__name__ == "Boolean"
    assert arguments["learning_rate"] is cosine
    assert arguments["weight_decay"] is None
    _, arguments = declared(
        space,
        learning_rate="CosineDecay_2",
        weight_decay="0",
        bias_correction=True,
    )
    assert arguments["learning_rate"] is other
    assert arguments["weight_decay"] == 0
    assert arguments["bias_correction"] is True


def test_a_list_of_one_is_a_fixed_value():
    assert only(beta_1=[0.5]) == only(beta_1=0.5)


def test_numpy_numbers_are_numbers():
    space = only(
        learning_rate=(np.float32(0.001), np.float64(0.1)),
        bias_correction=np.True_,
        epsilon=[np.float32(1e-8), np.float32(1e-7)],
    )
    assert space == only(
        learning_rate=(0.001, 0.1), bias_correction=True, epsilon=[1e-8, 1e-7]
    )


def test_the_input_is_not_changed():
    arguments = {
        "weight_decay": [None, 0.1],
        "learning_rate_schedule": {
            "constant": {},
            "cosine": {"alpha": [0.0, 0.1]},
        },
        "optimizer_arguments": {"exclude_from_clipping": ["bias"]},
        "num_steps": 10,
    }
    before = copy.deepcopy(arguments)
    space = AdamaxClippedSpace(**arguments)
    config = space.get_config()
    hp, made = declared(space)
    assert arguments == before
    # Nor does anybody change the space through it.
    arguments["weight_decay"].append(0.2)
    arguments["learning_rate_schedule"]["cosine"]["alpha"].append(0.2)
    arguments["optimizer_arguments"]["exclude_from_clipping"].append("x")
    made["exclude_from_clipping"].append("y")
    config["weight_decay"].append(0.2)
    config["optimizer_arguments"]["exclude_from_clipping"].append("z")
    assert space == AdamaxClippedSpace(**before)
    # Keras's deserialization hands over a dictionary of its own; ours may be
    # given any.
    config = space.get_config()
    before = copy.deepcopy(config)
    AdamaxClippedSpace.from_config(config)
    assert config == before


def test_further_arguments_of_the_optimizer():
    space = only(
        optimizer_arguments={"global_clipnorm": 2.0, "skip_nonfinite": True}
    )
    optimizer = space.build_optimizer(keras_tuner.HyperParameters())
    assert optimizer.global_clipnorm == 2.0
    assert optimizer.skip_nonfinite


# Saving


@FAST
@given(spaces())
def test_every_space_survives_json(space):
    loaded = through_json(space)
    assert loaded == space
    assert loaded.get_config() == space.get_config()
    first, second = declared(space)[0], declared(loaded)[0]
    assert first.get_config() == second.get_config()


def test_spaces_that_differ_are_not_equal():
    assert only(beta_1=(0.5, 0.9)) != only(beta_1=(0.5, 0.91))
    assert only(beta_1=(0.5, 0.9)) != only(beta_1=[0.5, 0.9])
    assert only(name_prefix="a") != only()
    assert only() != "space"


def test_a_schedule_survives_json():
    space = only(
        learning_rate=[schedules.CosineDecay(0.1, 100), 0.1],
        beta_2=keras_adamax.LinearRamp(0.9, 0.99, 10),
    )
    assert through_json(space) == space
    different = only(
        learning_rate=[schedules.CosineDecay(0.1, 101), 0.1],
        beta_2=keras_adamax.LinearRamp(0.9, 0.99, 10),
    )
    assert different != space


@pytest.mark.slow
@FAST
@given(spaces(), st.integers(0, 2**32 - 1), st.booleans())
def test_every_sample_makes_an_optimizer_that_survives_json(
    space, seed, at_an_end
):
    generator = np.random.default_rng(seed)

    def random():
        # Bayesian search proposes the ends themselves.
        return float(generator.integers(2) if at_an_end else generator.random())

    hp = sample(space, random)
    optimizer = space.build_optimizer(hp)
    config = optimizer.get_config()
    assert through_json(optimizer).get_config() == config
    # What the record says is what the optimizer has.
    prefix = space.get_config()["name_prefix"]
    for name in NUMBERS:
        value = config[name]
        distance, measure = DISTANCES.get(name, ("", abs))
        if not isinstance(value, (int, float)):
            continue
        if prefix + name in hp.values:
            recorded = hp.values[prefix + name]
            if recorded != str(value):
                assert value == pytest.approx(recorded, rel=1e-9)
        elif distance and prefix + distance in hp.values:
            recorded = hp.values[prefix + distance]
            assert measure(value) == pytest.approx(recorded, rel=1e-6)


@pytest.mark.slow
def test_an_optimizer_of_a_search_loads_without_the_search(tmp_path):
    space = AdamaxClippedSpace(
        learning_rate_schedule="cosine",
        beta_2_schedule="exponential",
        clip_multiplier_schedule="linear",
        num_steps=100,
    )
    optimizer = space.build_optimizer(keras_tuner.HyperParameters())
    config = keras.saving.serialize_keras_object(optimizer)
    (tmp_path / "optimizer.json").write_text(json.dumps(config))
    program = (
        "import json, sys, keras, keras_adamax\n"
        "config = json.load(open('optimizer.json'))\n"
        "optimizer = keras.saving.deserialize_keras_object(config)\n"
        "assert 'keras_adamax_tuning' not in sys.modules\n"
        "assert 'keras_tuner' not in sys.modules\n"
        "print(float(optimizer.beta_2(0)))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(0.98, abs=1e-6)


# Samples


@pytest.mark.parametrize(
    "name, specification, to_uniform",
    [
        ("learning_rate", (1e-4, 1e-1), np.log),
        ("epsilon", (1e-10, 1e-6), np.log),
        ("clip_epsilon", (1e-6, 1e-2), np.log),
        ("weight_decay", (1e-6, 1e-2), np.log),
        ("beta_1", (0.0, 0.99), lambda x: np.log(1 - x)),
        ("beta_2", (0.9, 0.9999), lambda x: np.log(1 - x)),
        ("clip_multiplier", (1.01, 10.0), lambda x: np.log(x - 1)),
        ("beta_2", Range(0.5, 0.9, scale="linear"), lambda x: x),
    ],
)
def test_samples_are_uniform_on_the_scale(name, specification, to_uniform):
    space = only(**{name: specification})
    low, high = (
        (specification.low, specification.high)
        if isinstance(specification, Range)
        else specification
    )
    generator = np.random.default_rng(7)
    hp = keras_tuner.HyperParameters()
    space.declare(hp)
    (parameter,) = hp.space
    values = []
    for _ in range(4000):
        hp.values[parameter.name] = parameter.prob_to_value(generator.random())
        values.append(space.declare(hp)[name])
    assert low <= min(values) and max(values) <= high
    ends = to_uniform(np.asarray([low, high]))
    part = (to_uniform(np.asarray(values)) - ends[0]) / (ends[1] - ends[0])
    # Kolmogorov and Smirnov's distance exceeds 1.95 / sqrt(n) once in 1000.
    distance = np.abs(np.sort(part) - (np.arange(4000) + 0.5) / 4000).max()
    assert distance < 1.95 / math.sqrt(4000)


def test_the_sampler_of_keras_tuner_reaches_every_kind():
    space = AdamaxClippedSpace(
        learning_rate_schedule=LEARNING_RATE_KINDS, num_steps=100
    )
    generator = np.random.default_rng(3)
    kinds = {
        sample(space, generator.random).values["learning_rate_schedule"]
        for _ in range(60)
    }
    assert kinds == set(LEARNING_RATE_KINDS)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_optuna_proposes_active_values_within_the_ranges(sampler):
    space = AdamaxClippedSpace(
        learning_rate_schedule=LEARNING_RATE_KINDS,
        clip_multiplier_schedule=["constant", "linear"],
        num_steps=100,
        name_prefix="a_",
    )
    hp = keras_tuner.HyperParameters()
    space.declare(hp)
    oracle = OptunaOracle(
        keras_tuner.Objective("score", "min"),
        max_trials=16,
        seed=0,
        sampler=sampler,
        hyperparameters=hp,
        storage=optuna.storages.InMemoryStorage(),
    )
    oracle.verbose = False
    for _ in range(16):
        trial = oracle.create_trial("worker")
        proposed = trial.hyperparameters
        values = dict(proposed.values)
        space.build_optimizer(proposed)
        # Nothing that the proposal lacked was filled in.
        assert proposed.values == values
        assert set(values) == {
            p.name for p in proposed.space if proposed.is_active(p)
        }
        for parameter in proposed.space:
            if hasattr(parameter, "min_value") and parameter.name in values:
                value = values[parameter.name]
                assert parameter.min_value <= value <= parameter.max_value
        score = abs(math.log(values["a_learning_rate"] / 0.003))
        oracle.update_trial(trial.trial_id, {"score": score})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    best = min(oracle.logical_trials(), key=lambda t: t.score)
    space.narrow(best.hyperparameters, 0.5)


def test_rounding_does_not_lead_past_an_end():
    # Bayesian search proposes the ends: `0.01 * (1.0 / 0.01)` and its like.
    space = only(beta_2=(0.0, 0.99))
    above = float(np.nextafter(1.0, 2.0))
    assert declared(space, one_minus_beta_2=above)[1]["beta_2"] == 0.0
    # What is near an end, and not at it, stays where it is.
    space = only(beta_2=(0.0, 1e-7))
    _, arguments = declared(space, one_minus_beta_2=1 - 5e-10)
    assert arguments["beta_2"] == pytest.approx(5e-10, rel=1e-5, abs=0)


# Conditions


def test_parts_are_active_for_their_kind_only():
    space = AdamaxClippedSpace(
        learning_rate_schedule=["constant", "cosine", "polynomial"],
        num_steps=100,
    )
    hp, _ = declared(space, learning_rate_schedule="cosine")
    assert "learning_rate_cosine_alpha" in hp.values
    assert "learning_rate_polynomial_power" not in hp.values
    hp, arguments = declared(space, learning_rate_schedule="constant")
    assert not [name for name in hp.values if "cosine" in name]
    assert arguments["learning_rate"] == 0.001


def test_clipping_has_parts_only_where_gradients_are_clipped():
    space = AdamaxClippedSpace(
        clip_multiplier_schedule=["constant", "linear"], num_steps=100
    )
    hp, arguments = declared(
        space, clip_gradients=True, clip_multiplier_schedule="linear"
    )
    assert "clip_multiplier_linear_num_steps" in hp.values
    assert isinstance(arguments["clip_multiplier"], keras_adamax.LinearRamp)
    hp, arguments = declared(space, clip_gradients=False)
    assert not [n for n in hp.values if n.startswith("clip_m")]
    assert "clip_epsilon" not in hp.values
    assert "clip_multiplier" not in arguments
    # All of them are declared, so that a sampler knows them from the start.
    assert "clip_multiplier_linear_num_steps" in by_name(hp)
    hp, _ = declared(AdamaxClippedSpace(clip_gradients=False))
    assert not [name for name in by_name(hp) if name.startswith("clip")]


def test_a_space_in_a_scope_that_is_not_active():
    space = AdamaxClippedSpace(
        learning_rate_schedule=["constant", "cosine"], num_steps=100
    )
    hp = keras_tuner.HyperParameters()
    kind = hp.Choice("model", ["mlp", "cnn"])
    for name in ("mlp", "cnn"):
        with hp.conditional_scope("model", [name]):
            with hp.name_scope(name):
                optimizer = space.build_optimizer(hp)
    assert kind == "mlp"
    assert isinstance(optimizer, keras_adamax.AdamaxClipped)
    assert "mlp/learning_rate" in hp.values
    assert "cnn/learning_rate" not in hp.values
    assert "cnn/learning_rate" in by_name(hp)


# Two in one search


def test_two_spaces_in_one_search():
    encoder = AdamaxClippedSpace(name_prefix="encoder_")
    decoder = AdamaxClippedSpace(
        learning_rate=(1e-3, 1.0), name_prefix="decoder_"
    )
    hp = keras_tuner.HyperParameters()
    hp.values["encoder_learning_rate"] = 0.01
    hp.values["decoder_learning_rate"] = 0.1
    assert float(encoder.build_optimizer(hp).get_config()["learning_rate"]) == (
        0.01
    )
    assert float(decoder.build_optimizer(hp).get_config()["learning_rate"]) == (
        0.1
    )
    assert len(hp.space) == 20
    assert "encoder_one_minus_beta_1" in hp.values


def test_the_same_space_again():
    hp = keras_tuner.HyperParameters()
    space = AdamaxClippedSpace(
        learning_rate_schedule=["constant", "cosine"], num_steps=100
    )
    first = space.declare(hp)
    count = len(hp.space)
    assert space.declare(hp) == first
    # From a record, as an oracle hands it out.
    again = keras_tuner.HyperParameters.from_config(
        json.loads(json.dumps(hp.get_config()))
    )
    assert space.declare(again) == first
    assert len(hp.space) == len(again.space) == count


@pytest.mark.parametrize(
    "declare",
    [
        lambda hp: hp.Float("learning_rate", 1e-5, 1e-1),
        lambda hp: hp.Float("learning_rate", 1e-5, 1e-2, sampling="log"),
        lambda hp: hp.Choice("learning_rate", [1e-3, 1e-2]),
        lambda hp: hp.Fixed("learning_rate", 1e-3),
        lambda hp: hp.Choice("weight_decay", [0.0, 0.1]),
        lambda hp: hp.Int("clip_gradients", 0, 1),
        lambda hp: only(beta_2=(0.9, 0.99)).declare(hp),
    ],
)
def test_another_declaration_of_a_name_is_an_error(declare):
    hp = keras_tuner.HyperParameters()
    declare(hp)
    with pytest.raises(ValueError, match="already declared.*name_prefix"):
        AdamaxClippedSpace().declare(hp)
    AdamaxClippedSpace(name_prefix="x_").declare(hp)


def test_another_default_is_not_another_declaration():
    hp = keras_tuner.HyperParameters()
    hp.Float("learning_rate", 1e-5, 0.1, sampling="log", default=0.01)
    _, value = hp, AdamaxClippedSpace().declare(hp)["learning_rate"]
    assert value == 0.01


# Schedules


def values_of(schedule, steps):
    return np.asarray([float(schedule(int(step))) for step in steps])


def test_beta_2_follows_the_original():
    hp, arguments = declared(
        only(
            beta_2=0.9995,
            beta_2_schedule={
                "exponential": {"start_factor": 20, "half_life": 2000}
            },
        )
    )
    steps = np.asarray([0, 1, 10, 100, 1000, 4000, 8000, 8643, 8644, 8645, 1e6])
    expected = np.maximum(0.0005, 0.01 * 0.5 ** (steps / 2000))
    # Float32 near 1 has steps of 6e-8.
    np.testing.assert_allclose(
        1 - values_of(arguments["beta_2"], steps),
        expected,
        rtol=1e-3,
        atol=1.2e-7,
    )


def test_beta_2_does_not_begin_below_0():
    _, arguments = declared(
        only(
            beta_2=0.9,
            beta_2_schedule={
                "exponential": {"start_factor": 100.0, "half_life": 10}
            },
        )
    )
    values = values_of(arguments["beta_2"], [0, 10, 1000])
    np.testing.assert_allclose(values, [0.0, 0.5, 0.9], atol=3e-4)
    _, arguments = declared(
        only(
            beta_2=0.0,
            beta_2_schedule="exponential",
            num_steps=10,
        )
    )
    assert arguments["beta_2"] == 0.0


@pytest.mark.parametrize("warmup_steps", [0, 5])
@pytest.mark.parametrize(
    "kind, parts, expected",
    [
        (
            "cosine",
            {"decay_steps": 20, "alpha": 0.1},
            lambda t: 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * min(t, 20) / 20)),
        ),
        (
            "exponential",
            {"decay_steps": 20, "decay_rate": 0.25},
            lambda t: 0.25 ** (t / 20),
        ),
        (
            "polynomial",
            {"decay_steps": 20, "end_factor": 0.5, "power": 2.0},
            lambda t: 0.5 + 0.5 * (1 - min(t, 20) / 20) ** 2,
        ),
    ],
)
def test_the_learning_rate_decays_after_its_warmup(
    kind, parts, expected, warmup_steps
):
    _, arguments = declared(
        only(
            learning_rate=2,
            learning_rate_schedule={
                kind: {**parts, "warmup_steps": warmup_steps}
            },
        )
    )
    steps = np.asarray([0, 1, 4, 5, 9, 20, 24, 25, 39])
    np.testing.assert_allclose(
        values_of(arguments["learning_rate"], steps),
        [
            2.0
            * (
                t / warmup_steps
                if t < warmup_steps
                else expected(t - warmup_steps)
            )
            for t in steps
        ],
        rtol=1e-5,
        atol=1e-7,
    )


def test_warmup_and_ramp():
    _, arguments = declared(
        only(
            learning_rate=2.0,
            learning_rate_schedule={"warmup": {"warmup_steps": 4}},
            clip_multiplier=1.5,
            clip_multiplier_schedule={"linear": {"start": 3.5, "num_steps": 4}},
        )
    )
    np.testing.assert_allclose(
        values_of(arguments["learning_rate"], range(6)), [0, 0.5, 1, 1.5, 2, 2]
    )
    np.testing.assert_allclose(
        values_of(arguments["clip_multiplier"], range(6)),
        [3.5, 3, 2.5, 2, 1.5, 1.5],
    )


def test_num_steps_gives_the_lengths_that_are_left_open():
    space = only(
        learning_rate_schedule={
            "cosine": {},
            "exponential": {"decay_steps": 7},
        },
        num_steps=1000,
    )
    config = space.get_config()["learning_rate_schedule"]
    assert config["cosine"]["decay_steps"] == 1000
    assert config["exponential"]["decay_steps"] == 7


# Narrowing


@pytest.mark.slow
@FAST
@given(spaces(), st.integers(0, 2**32 - 1), st.floats(0.01, 0.99))
def test_a_narrowed_space_lies_within_and_has_the_best(space, seed, factor):
    hp = sample(space, np.random.default_rng(seed).random)
    best = space.declare(hp)
    config = space.get_config()
    narrow = space.narrow(hp, factor)
    assert space.get_config() == config
    assert narrow == space.narrow(dict(hp.values), factor)
    assert through_json(narrow) == narrow
    outer = by_name(declared(space)[0])
    inner_hp, _ = declared(narrow)
    for name, parameter in by_name(inner_hp).items():
        assert hasattr(parameter, "min_value"), f"{name} is a choice still"
        assert parameter.min_value >= outer[name].min_value * (1 - 1e-9)
        assert parameter.max_value <= outer[name].max_value * (1 + 1e-9)
        assert parameter.sampling == outer[name].sampling
        assert hp.is_active(outer[name])
        value = hp.values[name]
        assert parameter.min_value <= value * (1 + 1e-6)
        assert parameter.max_value >= value * (1 - 1e-6)
        if type(parameter).__name__ == "Float":
            new, old = (
                np.log(p.max_value / p.min_value)
                if p.sampling == "log"
                else p.max_value - p.min_value
                for p in (parameter, outer[name])
            )
            assert new == pytest.approx(factor * old, rel=1e-3)
    # Exactly, in what the user wrote.
    for name in NUMBERS:
        old, new = config[name], narrow.get_config()[name]
        if isinstance(old, dict) and isinstance(new, dict):
            old, new = old["config"], new["config"]
            assert old["low"] <= new["low"] < new["high"] <= old["high"]
    # What is fixed now is fixed at the best.
    inner_hp.values.update(
        {k: v for k, v in hp.values.items() if k in by_name(inner_hp)}
    )
    narrowed = narrow.declare(inner_hp)
    assert narrowed.keys() == best.keys()
    for name, value in best.items():
        if isinstance(value, float):
            assert narrowed[name] == pytest.approx(value, rel=1e-6), name
        elif isinstance(value, schedules.LearningRateSchedule):
            assert type(narrowed[name]) is type(value)
        else:
            assert narrowed[name] == value, name


def test_narrowing_is_on_the_scale_and_shifts_at_an_end():
    space = only(beta_2=(0.9, 0.9999), learning_rate=(1e-4, 1.0))
    narrow = space.narrow(
        {"one_minus_beta_2": 0.001, "learning_rate": 1e-4}, 1 / 3
    )
    hp, _ = declared(narrow)
    beta_2 = by_name(hp)["one_minus_beta_2"]
    assert beta_2.min_value == pytest.approx(10**-3.5)
    assert beta_2.max_value == pytest.approx(10**-2.5)
    learning_rate = by_name(hp)["learning_rate"]
    assert learning_rate.min_value == 1e-4
    assert learning_rate.max_value == pytest.approx(10 ** (-4 + 4 / 3))


def test_narrowing_integers():
    space = only(
        learning_rate_schedule={"warmup": {"warmup_steps": (10, 1000)}}
    )
    name = "learning_rate_warmup_warmup_steps"
    part = by_name(declared(space.narrow({name: 100}, 0.5))[0])[name]
    assert (part.min_value, part.max_value) == (32, 316)
    narrow = space
    for _ in range(12):
        narrow = narrow.narrow({name: 100}, 0.3)
        if not declared(narrow)[0].space:
            break
    assert narrow.get_config()["learning_rate_schedule"] == {
        "warmup": {"warmup_steps": 100}
    }


def test_narrowing_leaves_other_hyperparameters_aside():
    space = only(learning_rate=(1e-4, 1e-2), name_prefix="a_")
    narrow = space.narrow(
        {"a_learning_rate": 1e-3, "learning_rate": 5.0, "units": 3}, 0.5
    )
    assert narrow.get_config()["name_prefix"] == "a_"


def test_narrowing_without_clipping_keeps_what_has_no_effect():
    space = AdamaxClippedSpace(
        clip_multiplier_schedule=["constant", "linear"], num_steps=100
    )
    hp, _ = declared(space, clip_gradients=False)
    narrow = space.narrow(hp, 0.5).get_config()
    assert narrow["clip_gradients"] is False
    for name in ("clip_multiplier", "clip_multiplier_schedule", "clip_epsilon"):
        assert narrow[name] == space.get_config()[name]


class TestTargetRate:
    KINDS = ["constant", "linear", "target_rate"]

    def space(self, kinds=KINDS, **arguments):
        return AdamaxClippedSpace(
            clip_multiplier_schedule=kinds, num_steps=100, **arguments
        )

    def test_the_multiplier_is_active_where_it_has_an_effect(self):
        for kind in self.KINDS:
            hp, arguments = declared(
                self.space(),
                clip_gradients=True,
                clip_multiplier_schedule=kind,
                clip_multiplier_target_rate_target=0.02,
                clip_multiplier_minus_1=0.5,
            )
            has_target = kind == "target_rate"
            multiplier = by_name(hp)["clip_multiplier_minus_1"]
            target = by_name(hp)["clip_multiplier_target_rate_target"]
            assert hp.is_active(multiplier) == (not has_target)
            assert hp.is_active(target) == has_target
            if has_target:
                schedule = arguments["clip_multiplier"]
                assert isinstance(schedule, keras_adamax.TargetClipRate)
                assert schedule.target == 0.02

    def test_the_range_of_the_target(self):
        hp, _ = declared(self.space(["target_rate"]))
        target = by_name(hp)["clip_multiplier_target_rate_target"]
        assert (target.min_value, target.max_value) == (0.001, 0.1)
        assert (target.default, target.sampling) == (0.01, "log")
        assert "clip_multiplier_minus_1" not in by_name(hp)

    def test_it_makes_an_optimizer(self):
        space = self.space({"target_rate": {"target": 0.03}})
        optimizer = space.build_optimizer(keras_tuner.HyperParameters())
        assert optimizer.clip_multiplier.target == 0.03

    def test_narrowing_around_a_target(self):
        space = self.space()
        hp, _ = declared(
            space,
            clip_multiplier_schedule="target_rate",
            clip_multiplier_target_rate_target=0.01,
        )
        hp.values.pop("clip_multiplier_minus_1", None)
        narrow = space.narrow(hp, 0.5)
        config = narrow.get_config()
        assert (
            config["clip_multiplier"] == space.get_config()["clip_multiplier"]
        )
        kinds = config["clip_multiplier_schedule"]
        assert list(kinds) == ["target_rate"]
        low = kinds["target_rate"]["target"]["config"]["low"]
        assert 0.001 < low < 0.01
        hp, _ = declared(narrow)
        assert "clip_multiplier_minus_1" not in by_name(hp)

    def test_the_table_says_where_the_multiplier_counts(self):
        text = self.space().describe()
        [row] = [
            r for r in text.splitlines() if r.startswith("clip_multiplier ")
        ]
        assert "(if clip_multiplier_schedule is constant or linear)" in row
        text = self.space(["target_rate"]).describe()
        [row] = [
            r for r in text.splitlines() if r.startswith("clip_multiplier ")
        ]
        assert row.split() == ["clip_multiplier", "no", "effect"]

    @pytest.mark.parametrize("target", [0, 1, (0.0, 0.5), (0.5, 1.0)])
    def test_targets_out_of_range(self, target):
        with pytest.raises(ValueError, match="target"):
            self.space({"target_rate": {"target": target}})


# What the user sees


def test_describe_shows_values_and_record():
    text = AdamaxClippedSpace(
        learning_rate_schedule=["constant", "cosine"],
        num_steps=100,
        optimizer_arguments={"global_clipnorm": 1.0},
    ).describe()
    rows = text.splitlines()
    by_argument = {row.split()[0]: " ".join(row.split()[1:]) for row in rows}
    assert by_argument["beta_2"] == (
        "0.9 to 0.9999 one_minus_beta_2: 0.0001 to 0.1, log 0.999"
    )
    assert "(if clip_gradients)" in by_argument["clip_epsilon"]
    assert "(if cosine)" in by_argument["learning_rate_cosine_alpha"]
    assert by_argument["global_clipnorm"] == "1.0 fixed"
    assert by_argument["weight_decay"].startswith("None, 1e-05, 0.0001")
    text = AdamaxClippedSpace(clip_gradients=False).describe()
    assert "clip_epsilon       " in text and "no effect" in text


def test_describe_prints_nothing(capsys):
    assert "one_minus_beta_1" in AdamaxClippedSpace().describe()
    assert capsys.readouterr().out == ""


def test_repr_can_be_read():
    text = repr(only(beta_1=(0.5, 0.9), name_prefix="a_"))
    assert "beta_1=Range(low=0.5, high=0.9, scale='log')" in text
    assert eval(text) == only(beta_1=(0.5, 0.9), name_prefix="a_")


# Bad input


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"lr": 0.1}, ValueError, r"does not have the argument\(s\) 'lr'"),
        ({"learning_rate": (0.1, 0.01)}, ValueError, "must be smaller than"),
        ({"learning_rate": (0.1, 0.1)}, ValueError, "Give one number"),
        ({"learning_rate": (0.1,)}, ValueError, r"pair \(low, high\)"),
        ({"learning_rate": (0.1, 0.2, 0.3)}, ValueError, "Give a list"),
        ({"learning_rate": (0.0, 0.1)}, ValueError, 'scale="linear"'),
        ({"learning_rate": -0.1}, ValueError, "learning_rate=-0.1"),
        ({"learning_rate": (-1.0, 0.1)}, ValueError, "learning_rate.low=-1.0"),
        ({"learning_rate": (0.1, math.inf)}, ValueError, "learning_rate.high"),
        ({"learning_rate": (0.1, math.nan)}, ValueError, "learning_rate.high"),
        ({"learning_rate": True}, TypeError, "learning_rate=True"),
        ({"learning_rate": (False, True)}, TypeError, "learning_rate.low"),
        ({"learning_rate": "0.1"}, TypeError, "tuple, a list of choices"),
        ({"learning_rate": None}, TypeError, "learning_rate=None"),
        ({"learning_rate": []}, ValueError, "must have a value to choose"),
        ({"learning_rate": [0.1, True]}, TypeError, r"learning_rate\[1\]=True"),
        ({"learning_rate": [0.1, 0.1]}, ValueError, "different values"),
        ({"learning_rate": lambda: 0.1}, TypeError, "learning_rate="),
        ({"beta_1": (0.5, 1.0)}, ValueError, "beta_1.high=1.0"),
        ({"beta_2": (0.5, 0.99999999999)}, ValueError, "float32 rounds"),
        ({"beta_2": [0.9, 1.5]}, ValueError, r"beta_2\[1\]=1.5"),
        ({"clip_multiplier": (1.0, 2.0)}, ValueError, "number > 1 on a log"),
        ({"clip_multiplier": 0.5}, ValueError, "clip_multiplier=0.5"),
        (
            {"beta_2": keras_adamax.LinearRamp(2.0, 0.9, 10)},
            ValueError,
            "at step 0",
        ),
        (
            {"epsilon": schedules.CosineDecay(0.1, 10)},
            TypeError,
            "epsilon=",
        ),
        ({"clip_gradients": 1}, TypeError, "True or False"),
        ({"clip_gradients": (False, True)}, TypeError, "a list of both"),
        ({"clip_gradients": [True, 0]}, TypeError, r"clip_gradients\[1\]=0"),
        ({"weight_decay": [None, -1.0]}, ValueError, r"weight_decay\[1\]"),
        ({"name_prefix": 3}, TypeError, "name_prefix=3"),
        ({"num_steps": 0}, ValueError, "num_steps=0"),
        (
            {"learning_rate_schedule": "step"},
            ValueError,
            "out of constant, warmup, cosine",
        ),
        ({"learning_rate_schedule": []}, ValueError, "a kind to choose"),
        ({"learning_rate_schedule": {}}, TypeError, "The kinds are"),
        ({"learning_rate_schedule": None}, TypeError, "The kinds are"),
        ({"learning_rate_schedule": [1]}, TypeError, "strings"),
        (
            {"learning_rate_schedule": ["cosine", "cosine"]},
            ValueError,
            "different kinds",
        ),
        (
            {"learning_rate_schedule": ["constant", "cosine"]},
            ValueError,
            "`num_steps` must be given, or 'decay_steps'",
        ),
        (
            {"learning_rate_schedule": {"warmup": {"steps": 3}}},
            ValueError,
            "has no part 'steps'.*It has warmup_steps",
        ),
        (
            {"learning_rate_schedule": {"warmup": {"warmup_steps": (1.5, 3)}}},
            TypeError,
            "warmup_steps.low=1.5",
        ),
        (
            {"learning_rate_schedule": {"warmup": 3}},
            TypeError,
            "dictionary of specifications",
        ),
        (
            {
                "learning_rate": schedules.CosineDecay(0.1, 10),
                "learning_rate_schedule": {"warmup": {"warmup_steps": 3}},
            },
            ValueError,
            'learning_rate_schedule="constant"',
        ),
        (
            {"optimizer_arguments": {"beta_1": 0.5}},
            ValueError,
            "beta_1=0.5 to the space",
        ),
        ({"optimizer_arguments": {"clipnom": 1}}, ValueError, "'clipnom'"),
        ({"optimizer_arguments": {"clipnorm": -1}}, ValueError, "clipnorm=-1"),
        ({"optimizer_arguments": 3}, TypeError, "a dictionary or None"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        AdamaxClippedSpace(**arguments)
    assert "Received: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((1, 1), ValueError, "`low` must be smaller"),
        ((2, 1), ValueError, "low=2, high=1"),
        (("a", 1), TypeError, "low='a'"),
        ((1, math.inf), ValueError, "high=inf"),
        ((1, 2, "exponential"), ValueError, "scale='exponential'"),
    ],
)
def test_bad_ranges(arguments, error, message):
    with pytest.raises(error, match=message):
        Range(*arguments)


@pytest.mark.parametrize(
    "best, factor, error, message",
    [
        ({"learning_rate": 1e-3}, 0, ValueError, "factor=0"),
        ({"learning_rate": 1e-3}, 1, ValueError, "factor=1"),
        ({"learning_rate": 1e-3}, "half", TypeError, "factor='half'"),
        (
            {"learning_rat": 1e-3},
            0.5,
            ValueError,
            "a value for 'learning_rate'",
        ),
        ({"learning_rate": 1.0}, 0.5, ValueError, "in the range"),
        ({"learning_rate": "1e-3"}, 0.5, ValueError, "in the range"),
        (3, 0.5, TypeError, "HyperParameters or a dictionary"),
    ],
)
def test_bad_narrowing(best, factor, error, message):
    with pytest.raises(error, match=message):
        only(learning_rate=(1e-4, 1e-2)).narrow(best, factor)


def test_narrowing_with_an_unknown_choice():
    space = only(
        weight_decay=[None, 0.1],
        learning_rate_schedule=["constant", "warmup"],
        num_steps=10,
    )
    with pytest.raises(ValueError, match=r"one of \['None', '0.1'\]"):
        space.narrow({"weight_decay": 0.2}, 0.5)
    with pytest.raises(ValueError, match=r"one of \['constant', 'warmup'\]"):
        space.narrow({"weight_decay": "None"}, 0.5)


# Canaries: what of KerasTuner we use or go round


def test_canary_names_have_their_scopes_in_front():
    hp = keras_tuner.HyperParameters()
    with hp.name_scope("a"):
        with hp.name_scope("b"):
            assert hp._get_name("c") == "a/b/c"


def test_canary_keras_tuner_ignores_another_declaration():
    hp = keras_tuner.HyperParameters()
    hp.Float("x", 0.0, 1.0, default=0.5)
    assert hp.Float("x", 10.0, 20.0) == 0.5
    assert hp.Choice("x", ["a"]) == 0.5


def test_canary_keras_tuner_has_choices_of_one_type():
    with pytest.raises(TypeError, match="only one type"):
        kt_hyperparameters.Choice("x", [None, 0.1])
    with pytest.raises(TypeError, match="only one type"):
        kt_hyperparameters.Choice("x", [1, 0.1])
    assert kt_hyperparameters.Choice("x", [True, False]).values == [1, 0]


def test_the_spike_gate_can_be_searched():
    space = AdamaxClippedSpace(
        spike_threshold=[None, 0.2], max_skipped_spikes=3
    )
    hp = keras_tuner.HyperParameters()
    assert space.build_optimizer(hp).spike_threshold is None
    hp.values["spike_threshold"] = "0.2"
    hp.values["clip_gradients"] = True
    optimizer = space.build_optimizer(hp)
    assert (optimizer.spike_threshold, optimizer.max_skipped_spikes) == (0.2, 3)
    hp.values["clip_gradients"] = False
    assert space.build_optimizer(hp).spike_threshold is None
    assert AdamaxClippedSpace.from_config(space.get_config()) == space
    # What a search from before it says of itself stays the same.
    without = AdamaxClippedSpace(spike_threshold=None)
    assert "spike_threshold" not in without.get_config()
    assert AdamaxClippedSpace.from_config(without.get_config()) == without


def test_a_standard_search_decides_whether_there_is_a_gate():
    hp = keras_tuner.HyperParameters()
    AdamaxClippedSpace().declare(hp)
    [gate] = [p for p in hp.space if p.name == "spike_threshold"]
    assert gate.values == ["None", "0.2"]
    assert gate.default == "None"


@pytest.mark.parametrize(
    "arguments",
    [
        {"clip_multiplier": TargetClipRate(0.2)},
        {"clip_multiplier": [1.2, TargetClipRate(0.3)]},
        {"clip_multiplier_schedule": {"target_rate": {"target": 0.2}}},
        {"clip_multiplier_schedule": {"target_rate": {"target": (0.1, 0.3)}}},
        {
            "clip_multiplier_schedule": ["constant", "target_rate"],
            "spike_threshold": (0.05, 0.5),
        },
    ],
)
def test_a_target_that_the_gate_takes_for_a_spike_is_refused(arguments):
    with pytest.raises(ValueError, match="must be below.*spike_threshold"):
        AdamaxClippedSpace(**arguments)
    AdamaxClippedSpace(**{**arguments, "spike_threshold": None})
    AdamaxClippedSpace(**{**arguments, "spike_threshold": [None, 0.5]})
    AdamaxClippedSpace(**{**arguments, "clip_gradients": False})


def test_the_standard_targets_are_below_the_standard_gate():
    AdamaxClippedSpace(clip_multiplier_schedule=["constant", "target_rate"])


@pytest.mark.parametrize(
    ("arguments", "tolerance"),
    [
        # ln(1 / beta_2) over that plus ln(clip_multiplier), by hand.
        ({"beta_2": 0.999, "clip_multiplier": 1.2}, "0.00546"),
        ({"beta_2": 0.99, "clip_multiplier": 1.2}, "0.0522"),
        (
            {"beta_2": (0.99, 0.999), "clip_multiplier": [1.2, 1.05]},
            "0.00546 to 0.171",
        ),
        ({"beta_2": 0.99, "clip_gradients": False}, None),
        ({"beta_2_schedule": "exponential", "num_steps": 9}, None),
        ({"beta_2": schedules.ExponentialDecay(0.9, 3, 0.5)}, None),
    ],
)
def test_the_table_says_the_spike_tolerance(arguments, tolerance):
    table = AdamaxClippedSpace(**arguments).describe()
    rows = [r for r in table.splitlines() if "spike_tolerance" in r]
    if tolerance is None:
        assert not rows
    else:
        [row] = rows
        assert re.fullmatch(rf"spike_tolerance +{tolerance} +follows *", row)
