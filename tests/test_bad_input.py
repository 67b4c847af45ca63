"""Every wrong hyperparameter is refused at construction, by name."""

import inspect
import re

import keras
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from keras_adamax import AdamaxClipped, hyperparameters

NAN = float("nan")
INF = float("inf")
SCHEDULE = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)

# Argument -> wrong values, and the words that tell what is allowed.
WRONG = {
    "learning_rate": (
        [-0.1, -1, NAN, INF, -INF, 1e40, "0.1", True, None, [0.1], 1j],
        "a finite number >= 0",
    ),
    "beta_1": (
        [-0.1, 1.0, 1, 1.5, NAN, INF, "0.9", False, None, 1 - 1e-12, (0.9,)],
        r"in the range \[0, 1\)",
    ),
    "beta_2": (
        [-1e-9, 1.0, 2, NAN, -INF, "x", True, None, 0.99999999, abs],
        r"in the range \[0, 1\)",
    ),
    "epsilon": (
        [-1e-8, NAN, INF, "1e-8", True, None, SCHEDULE, 1e39],
        "a finite number >= 0",
    ),
    "clip_multiplier": (
        [0.999, 0, -1.2, NAN, INF, "1.2", True, None, 10**400, {}],
        "a finite number >= 1",
    ),
    "clip_epsilon": (
        [-1e-4, NAN, INF, "1e-4", False, None, b"1"],
        "a finite number >= 0",
    ),
    "weight_decay": (
        [-0.01, NAN, INF, "0.1", True, SCHEDULE],
        "a finite number >= 0 or None",
    ),
    "spike_threshold": (
        [0, 1, -0.1, 1.5, NAN, INF, "0.2", True, [0.2], SCHEDULE],
        r"a number in the range \(0, 1\) or None",
    ),
    "max_skipped_spikes": (
        [0, -1, 2.0, "5", True, None, NAN, SCHEDULE],
        "an integer >= 1",
    ),
    "clipnorm": ([0, -1.0, NAN, INF, "1", True, SCHEDULE], "> 0 or None"),
    "clipvalue": ([0.0, -0.5, NAN, "1", True, SCHEDULE], "> 0 or None"),
    "global_clipnorm": ([0, -1, NAN, "1", True, SCHEDULE], "> 0 or None"),
    "loss_scale_factor": ([0, -2.0, NAN, INF, "2", True], "> 0 or None"),
    "ema_momentum": (
        [-0.1, 1.1, NAN, "0.9", True, None, SCHEDULE],
        r"in the range \[0, 1\]",
    ),
    "ema_overwrite_frequency": (
        [0, -1, 1.0, 2.5, "3", True, NAN],
        "an integer >= 1 or None",
    ),
    "gradient_accumulation_steps": (
        [1, 0, -2, 2.0, "4", True, NAN, SCHEDULE],
        "an integer >= 2 or None",
    ),
    "clip_gradients": ([0, 1, None, "True", 1.0, []], "True or False"),
    "bias_correction": ([0, 1, None, "no", SCHEDULE], "True or False"),
    "track_clip_rate": ([0, 1, None, "yes"], "True or False"),
    "track_gradient_norms": ([0, 1, None, "yes"], "True or False"),
    "skip_nonfinite": ([0, 1, None, ""], "True or False"),
    "use_ema": ([0, 1, None, "False"], "True or False"),
    "exclude_from_clipping": (
        ["bias", b"bias", {"bias"}, 3, True, ["("], [""], [3], ["ok", None]],
        "None or a list of regular expressions",
    ),
    "name": (["", "a/b", None, 3], "a string without '/'"),
}
CASES = [
    (name, value, words)
    for name, (values, words) in WRONG.items()
    for value in values
]


def test_there_are_enough_cases():
    assert len(CASES) >= 120


@pytest.mark.parametrize(
    ("name", "value", "words"), CASES, ids=lambda case: str(case)[:30]
)
def test_wrong_value(name, value, words):
    with pytest.raises((ValueError, TypeError)) as error:
        AdamaxClipped(**{name: value})
    message = str(error.value)
    assert f"`{name}`" in message
    assert re.search(words, message)
    assert "Received" in message
    if name != "exclude_from_clipping" or not isinstance(value, set):
        assert repr(value)[:20] in message


@pytest.mark.parametrize(
    "keyword", ["decay", "lr", "momentum", "clip_norm", "jit_compile"]
)
def test_unknown_keyword(keyword):
    with pytest.raises(ValueError, match=f"'{keyword}'"):
        AdamaxClipped(**{keyword: 0.1})


def test_only_one_of_keras_clippings():
    with pytest.raises(ValueError, match="clipnorm"):
        AdamaxClipped(clipnorm=1.0, clipvalue=1.0)


class Constant(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of one value."""

    def __init__(self, value):
        self.value = value

    def __call__(self, step):
        return keras.ops.convert_to_tensor(self.value, dtype="float32")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beta_1", 1.0),
        ("beta_1", -0.5),
        ("beta_2", NAN),
        ("beta_2", 1.5),
        ("clip_multiplier", INF),
        ("clip_multiplier", NAN),
        ("clip_epsilon", -1e-4),
        ("clip_epsilon", NAN),
    ],
)
def test_a_schedule_whose_first_value_is_wrong(name, value):
    with pytest.raises(ValueError, match=f"(?s)`{name}`.*step 0.*Received"):
        AdamaxClipped(**{name: Constant(value)})


def test_a_multiplier_schedule_may_go_below_one():
    assert AdamaxClipped(clip_multiplier=Constant(0.5)).clip_multiplier


def test_a_schedule_outside_its_range_later_is_held_in_it():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [0], [0.5, 3.0]
    )
    optimizer = AdamaxClipped(beta_1=schedule, beta_2=schedule)
    variable = keras.Variable(np.ones(2, "float32"))
    gradient = keras.ops.convert_to_tensor(np.ones(2, "float32"))
    for _ in range(3):
        optimizer.apply([gradient], [variable])
    momentum = keras.ops.convert_to_numpy(optimizer._momentums[0])
    # Held just below 1, the first moment hardly changes: it does not blow up.
    assert (np.abs(momentum) < 1e-3).all()


def test_no_clip_epsilon_warns_that_nothing_moves():
    with pytest.warns(UserWarning, match="no weight ever moves"):
        AdamaxClipped(clip_epsilon=0)
    with pytest.warns(UserWarning, match="no weight ever moves"):
        AdamaxClipped(clip_epsilon=1e-60)
    AdamaxClipped(clip_epsilon=0, clip_gradients=False)


@pytest.mark.parametrize(
    "value", [1, 0, np.int64(1), np.float32(0.25), np.float64(0.3), 2.5]
)
def test_integers_and_numpy_scalars_are_numbers(value):
    optimizer = AdamaxClipped(learning_rate=value, epsilon=value)
    config = optimizer.get_config()
    assert config["learning_rate"] == float(value) == config["epsilon"]
    assert type(config["epsilon"]) in (int, float)
    assert type(config["learning_rate"]) in (int, float)


def test_numpy_float32_is_taken_as_it_was_written():
    config = AdamaxClipped(learning_rate=np.float32(0.001)).get_config()
    assert config["learning_rate"] == 0.001


numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(2**70), 2**70),
)
others = st.one_of(
    st.none(),
    st.booleans(),
    st.text(),
    st.binary(),
    st.lists(st.floats(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.floats(), max_size=1),
    st.complex_numbers(),
)


def as_float32(value):
    with np.errstate(over="ignore"):
        try:
            return float(np.float32(float(value)))
        except OverflowError:
            return INF


ALLOWED = {
    "learning_rate": lambda v: 0 <= v < INF,
    "beta_1": lambda v: 0 <= v < 1,
    "beta_2": lambda v: 0 <= v < 1,
    "epsilon": lambda v: 0 <= v < INF,
    "clip_multiplier": lambda v: 1 <= v < INF,
    "clip_epsilon": lambda v: 0 <= v < INF,
    "weight_decay": lambda v: 0 <= v < INF,
}


@pytest.mark.filterwarnings("ignore:With clip_epsilon=0")
@given(name=st.sampled_from(sorted(ALLOWED)), value=numbers)
def test_a_number_is_taken_if_and_only_if_it_is_in_range(name, value):
    allowed = ALLOWED[name]
    # In range as written, and as float32 rounds it.
    if allowed(float(value)) and allowed(as_float32(value)):
        # TensorFlow takes what float32 has as subnormal numbers for 0.
        assume(not 0 < value < 2**-126)
        config = AdamaxClipped(**{name: value}).get_config()
        assert config[name] == value
    else:
        with pytest.raises(ValueError, match=f"`{name}`"):
            AdamaxClipped(**{name: value})


@given(name=st.sampled_from(sorted(ALLOWED)), value=others)
def test_what_is_no_number_is_refused(name, value):
    if name == "weight_decay" and value is None:
        return
    with pytest.raises(TypeError, match=f"`{name}`"):
        AdamaxClipped(**{name: value})


@given(
    name=st.sampled_from(
        ["clip_gradients", "bias_correction", "track_clip_rate", "use_ema"]
    ),
    value=st.one_of(numbers, st.none(), st.text(), st.lists(st.booleans())),
)
def test_flags_are_booleans(name, value):
    with pytest.raises(TypeError, match=f"`{name}`"):
        AdamaxClipped(**{name: value})


def test_a_gate_that_is_off_takes_the_default_alone():
    """Without clipping, `max_skipped_spikes` must be what it is anyway."""
    signature = inspect.signature(AdamaxClipped)
    default = signature.parameters["max_skipped_spikes"].default
    assert default == hyperparameters.MAX_SKIPPED_SPIKES
    AdamaxClipped(clip_gradients=False, max_skipped_spikes=default)
