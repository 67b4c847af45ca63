"""What is saved of an optimizer, how it is matched, and what does not fit."""

import contextlib
import json
import re

import keras
import numpy as np
import pytest

from keras_adamax import AdamaxClipped, clip_statistics
from keras_adamax.state import matching
from keras_adamax.state import saved_format as saved_state
from tests.gradients import numpy, stepper
from tests.support import (
    assign_variables,
    id_of,
    set_state_tree,
    set_weights,
)

schedules = keras.optimizers.schedules

SHAPES = {"a": (3, 2), "b": (2,), "c": (2, 2), "d": ()}


def make_variables(shapes=None, scope="layer"):
    """Variables with paths `scope/name`."""
    variables = []
    for name, shape in (shapes or SHAPES).items():
        with keras.name_scope(scope):
            variables.append(
                keras.Variable(np.ones(shape, "float32"), name=name)
            )
    return variables


def built(variables=None, **arguments):
    optimizer = AdamaxClipped(**arguments)
    optimizer.build(make_variables() if variables is None else variables)
    return optimizer


def roles_of(optimizer):
    """Role to the variables that hold it."""
    return {
        **optimizer._per_variable(),
        "clip_counts": optimizer._clip_counts.rows,
    }


def with_state(variables=None, seed=0, iterations=7, **arguments):
    """A built optimizer, each of whose variables holds something of its own."""
    optimizer = built(variables, **arguments)
    rng = np.random.default_rng(seed)
    for role in optimizer._per_variable().values():
        for variable in role:
            if variable is not None:
                variable.assign(rng.normal(size=variable.shape))
    counts = rng.integers(1, 100, optimizer._clip_counts.rows.shape)
    counts[:, 3:] += 1000
    optimizer._clip_counts.rows.assign(counts)
    optimizer._iterations.assign(iterations)
    optimizer._skipped_steps.assign(3)
    if optimizer.spike_threshold is not None:
        optimizer._spike_gate.state.assign([1, 2, 4])
    return optimizer


def save(optimizer):
    """The saved state in a dictionary, which is all that a store must be."""
    store = {}
    optimizer.save_own_variables(store)
    return store


def manifest_of(store):
    return json.loads(store[saved_state.MANIFEST].tobytes())


def with_manifest(store, remove=(), **changes):
    """A copy of a state with another manifest."""
    manifest = manifest_of(store) | changes
    for name in remove:
        del manifest[name]
    text = np.frombuffer(json.dumps(manifest).encode(), "uint8")
    return store | {saved_state.MANIFEST: text}


def everything(optimizer):
    """All that loading a state can change, to compare with `==`."""
    return (
        [
            (v.path, keras.ops.convert_to_numpy(v).tolist())
            for v in optimizer.variables
        ],
        optimizer.get_config(),
        optimizer.clip_statistics(),
        repr(optimizer.clip_rates()),
        optimizer.skipped_steps(),
        optimizer.spike_steps(),
        optimizer._exclusions.unmatched,
        [
            optimizer._use_weight_decay(v)
            for v in optimizer._trainable_variables
        ],
    )


def moments(optimizer):
    """Path of a variable to its momentum, norm and counts, as lists."""
    convert = keras.ops.convert_to_numpy
    return {
        path: (
            convert(optimizer._momentums[i]).tolist(),
            convert(optimizer._norms[i]).tolist(),
            convert(optimizer._clip_counts.rows)[i].tolist(),
        )
        for i, path in enumerate(optimizer._paths)
    }


def assert_refused(optimizer, store, match):
    """Loading raises an error and changes nothing."""
    before = everything(optimizer)
    with pytest.raises(ValueError, match=match):
        optimizer.load_own_variables(store)
    assert everything(optimizer) == before


class TestFormat:
    def test_manifest_describes_every_array(self):
        optimizer = with_state(
            use_ema=True, gradient_accumulation_steps=2, weight_decay=0.1
        )
        store = save(optimizer)
        manifest = manifest_of(store)
        assert manifest["format_version"] == saved_state.FORMAT_VERSION
        assert manifest["paths"] == [f"layer/{name}" for name in SHAPES]
        assert manifest["shapes"] == [list(s) for s in SHAPES.values()]
        entries = manifest["entries"]
        assert {e["key"] for e in entries} == set(store) - {"manifest"}
        for entry in entries:
            assert list(store[entry["key"]].shape) == entry["shape"]
        per_variable = [e for e in entries if "index" in e]
        assert {e["role"] for e in per_variable} == {
            "momentum",
            "norm",
            "average",
            "gradient_accumulator",
            "clip_counts",
            "clipping_exclusion",
        }
        for entry in per_variable:
            assert entry["path"] == manifest["paths"][entry["index"]]
        assert {e["role"] for e in entries if "index" not in e} == {
            "iterations",
            "learning_rate",
            "hyperparameters",
            "log_beta_1_product",
            "skipped_steps",
        }

    def test_nothing_but_numbers_in_a_store(self):
        store = save(with_state(exclude_from_clipping=["a$"]))
        assert {array.dtype.kind for array in store.values()} <= set("uif")

    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"use_ema": True},
            {"gradient_accumulation_steps": 3},
            {"use_ema": True, "gradient_accumulation_steps": 3},
            {"exclude_from_clipping": ["a$", "c$"]},
            {"spike_threshold": 0.4, "max_skipped_spikes": 7},
        ],
    )
    def test_round_trip(self, arguments):
        optimizer = with_state(**arguments)
        other = built(**arguments)
        assert everything(other) != everything(optimizer)
        other.load_own_variables(save(optimizer))
        assert everything(other) == everything(optimizer)

    def test_saving_twice_gives_the_same(self):
        optimizer = with_state()
        first, second = save(optimizer), save(optimizer)
        other = built()
        other.load_own_variables(first)
        for store in (second, save(other)):
            assert list(store) == list(first)
            for key, array in first.items():
                assert array.dtype == store[key].dtype
                np.testing.assert_array_equal(array, store[key])

    def test_sharded_weights(self, tmp_path):
        model = small_model(AdamaxClipped(), units=300)
        fit(model)
        path = tmp_path / "model.weights.json"
        # So small that the optimizer's entries are spread over files.
        model.save_weights(path, max_shard_size=6e-6)
        assert len(list(tmp_path.glob("*.h5"))) > 2
        other = small_model(AdamaxClipped(), units=300)
        other.optimizer.build(other.trainable_variables)
        other.load_weights(path)
        assert list(moments(other.optimizer).values()) == list(
            moments(model.optimizer).values()
        )
        assert int(other.optimizer.iterations) == 3

    def test_directory_in_place_of_a_file(self, tmp_path):
        model = small_model(AdamaxClipped())
        fit(model)
        keras.saving.save_model(model, tmp_path / "model", zipped=False)
        other = keras.saving.load_model(tmp_path / "model")
        assert list(moments(other.optimizer).values()) == list(
            moments(model.optimizer).values()
        )

    @staticmethod
    def format_1():
        # Written out, because every later version must read it.
        roles = {
            "momentum.0": [0.5, -0.25],
            "norm.0": [1.0, 2.0],
            "clip_counts.0": [3.0, 0.0, 0.0, 8.0, 1.0, 0.0],
            "clipping_exclusion.0": 0.0,
            "iterations": 4,
            "learning_rate": 0.125,
            "hyperparameters": [0.9, 0.999, 1e-8, 1.5, 1e-4, 0.0],
            "log_beta_1_product": 4 * np.log(0.9),
            "skipped_steps": 1,
        }
        store = {key: np.asarray(value, "f") for key, value in roles.items()}
        numbers = {
            "beta_1": 0.9,
            "beta_2": 0.999,
            "epsilon": 1e-08,
            "clip_multiplier": 1.2,
            "clip_epsilon": 0.0001,
        }
        manifest = {
            "format_version": 1,
            "kind": "own",
            "roles": ["momentum", "norm", "clip_counts", "clipping_exclusion"],
            "paths": ["model/w"],
            "shapes": [[2]],
            "entries": [
                {"key": key, "shape": list(array.shape)}
                for key, array in store.items()
            ],
            "constructed": numbers,
            "current": numbers | {"clip_multiplier": 1.5},
            "learning_rate_is_number": True,
            "learning_rate": 0.125,
            "use_ema": False,
            "gradient_accumulation_steps": None,
            "exclude_from_clipping": [],
            "not_decayed": [0],
            "not_decayed_pattern": None,
            "clip_rate_origin": [["model/w", 1, 2**20]],
        }
        text = json.dumps(manifest).encode()
        store["manifest"] = np.frombuffer(text, "uint8")
        return store

    # The format is from before there was a spike gate.
    @pytest.mark.parametrize("arguments", [{}, {"spike_threshold": 0.4}])
    def test_format_1(self, arguments):
        optimizer = AdamaxClipped(**arguments)
        optimizer.load_own_variables(self.format_1())
        variable = keras.Variable([1.0, 2.0], name="w")
        optimizer.build([variable])
        assert int(optimizer.iterations) == 4
        assert optimizer.skipped_steps() == 1
        assert optimizer.spike_steps() == 0
        assert optimizer.spike_threshold == arguments.get("spike_threshold")
        assert optimizer.max_skipped_spikes == 5
        assert moments(optimizer) == {
            "w": ([0.5, -0.25], [1.0, 2.0], [3.0, 0.0, 0.0, 8.0, 1.0, 0.0])
        }
        config = optimizer.get_config()
        assert config["learning_rate"] == 0.125
        assert config["clip_multiplier"] == 1.5
        assert optimizer.clip_rates() == {"w": 2 / 8}
        assert not optimizer._use_weight_decay(variable)

    @pytest.mark.parametrize("has_gate", [False, True])
    def test_format_1_inside_of_a_loss_scale_optimizer(self, has_gate):
        """Its own state is there by position, before the one that it wraps."""
        store = self.format_1()
        wrapper = [7, 0.5, 3, 64.0]
        roles = [
            "iterations",
            "learning_rate",
            "hyperparameters",
            "log_beta_1_product",
            "skipped_steps",
            "momentum.0",
            "norm.0",
        ]
        of_all = [store["clip_counts.0"][None], [0.0]]
        arrays = [*wrapper, *(store[role] for role in roles), *of_all]
        inner = AdamaxClipped(spike_threshold=0.4 if has_gate else None)
        optimizer = keras.optimizers.LossScaleOptimizer(inner)
        optimizer.build([keras.Variable([1.0, 2.0], name="w")])
        # What Keras calls for a file of weights.
        with (
            pytest.warns(UserWarning, match="has 15 variables whereas.* 13")
            if has_gate
            else contextlib.nullcontext()
        ):
            optimizer.load_own_variables(
                {str(i): np.asarray(x, "f") for i, x in enumerate(arrays)}
            )
        inner.load_own_variables(store)
        if not has_gate:
            assert int(optimizer.step_counter) == 3
            assert float(optimizer.dynamic_scale) == 64.0
        assert int(inner.iterations) == 4
        assert (inner.skipped_steps(), inner.spike_steps()) == (1, 0)
        assert moments(inner) == {
            "w": ([0.5, -0.25], [1.0, 2.0], [3.0, 0.0, 0.0, 8.0, 1.0, 0.0])
        }
        assert inner.clip_multiplier == 1.5

    def test_variable_without_state(self):
        # Keras's float8 layers have variables that are overwritten with their
        # gradients, and keeps no moments for them.
        def variables():
            result = make_variables()
            result[1].overwrite_with_gradient = True
            return result

        arguments = {"use_ema": True, "gradient_accumulation_steps": 2}
        optimizer = with_state(variables(), **arguments)
        assert optimizer._momentums[1] is None
        other = built(variables(), **arguments)
        other.load_own_variables(save(optimizer))
        assert everything(other) == everything(optimizer)
        assert_refused(
            built(**arguments),
            save(optimizer),
            "layer/b was saved without a momentum, and Keras needs one",
        )
        assert_refused(
            other,
            save(with_state(**arguments)),
            "layer/b was saved with a momentum, and Keras keeps none",
        )


def small_model(optimizer, units=2, **arguments):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(units, name="first"),
            keras.layers.Dense(1, name="second"),
        ],
    )
    model.compile(optimizer, "mse", **arguments)
    return model


def fit(model, steps=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(steps, 3)).astype("float32")
    y = rng.normal(size=(steps, 1)).astype("float32")
    model.fit(x, y, batch_size=1, shuffle=False, verbose=0)


class TestMatch:
    """The function alone."""

    def test_by_path(self):
        assert matching.match(
            ["x", "y", "z"],
            [[1], [2], [3]],
            ["z", "x", "y"],
            [(3,), (1,), (2,)],
        ) == [2, 0, 1]

    def test_by_order_if_paths_differ(self):
        assert matching.match(
            ["m/x", "m/y"], [[1], [2]], ["x", "y"], [(1,), (2,)]
        ) == [0, 1]

    def test_by_order_if_some_paths_differ(self):
        assert matching.match(
            ["x", "y"], [[1], [1]], ["y", "z"], [(1,), (1,)]
        ) == [0, 1]

    def test_by_order_if_paths_repeat(self):
        assert matching.match(
            ["x", "x"], [[1], [2]], ["x", "x"], [(1,), (2,)]
        ) == [0, 1]

    def test_number(self):
        with pytest.raises(
            ValueError,
            match=r"of 2 variables, and the optimizer updates 3. Not in the "
            r"saved state: \['z'\]. Only in the saved state: none",
        ):
            matching.match(
                ["x", "y"], [[1], [1]], ["x", "y", "z"], [(1,), (1,), (1,)]
            )

    def test_shapes_by_path(self):
        with pytest.raises(
            ValueError,
            match=r"matched by path\): y has shape \(2, 3\), saved as y with "
            r"shape \(3, 2\)\.",
        ):
            matching.match(
                ["x", "y"], [[1], [3, 2]], ["y", "x"], [(2, 3), (1,)]
            )

    def test_shapes_by_order(self):
        with pytest.raises(
            ValueError,
            match=r"matched by build order\): y has shape \(\), saved as m/y "
            r"with shape \(1,\); z has shape \(1,\), saved as m/z with shape "
            r"\(\)\.",
        ):
            matching.match(
                ["m/x", "m/y", "m/z"],
                [[1], [1], []],
                ["x", "y", "z"],
                [(1,), (), (1,)],
            )


class TestMatching:
    # Of one shape, so that a wrong match is not noticed by shape.
    ALIKE = {"a": (2,), "b": (2,), "c": (2,)}

    def test_by_path_in_another_order(self):
        optimizer = with_state(
            make_variables(self.ALIKE), exclude_from_clipping=["a$"]
        )
        variables = make_variables(self.ALIKE)
        other = built(
            [variables[i] for i in (1, 2, 0)], exclude_from_clipping=["a$"]
        )
        other.load_own_variables(save(optimizer))
        assert moments(other) == moments(optimizer)
        assert other._paths == ("layer/b", "layer/c", "layer/a")
        assert other.clip_rates() == pytest.approx(
            optimizer.clip_rates(), nan_ok=True
        )
        exclusions = keras.ops.convert_to_numpy(other._clip_counts.exclusions)
        assert exclusions.tolist() == [0, 0, 1]

    def test_by_order_under_other_paths(self):
        optimizer = with_state(make_variables(scope="sequential"))
        other = built(make_variables())
        other.load_own_variables(save(optimizer))
        assert list(moments(other)) == [f"layer/{name}" for name in SHAPES]
        assert list(moments(other).values()) == list(
            moments(optimizer).values()
        )

    def test_a_path_that_repeats(self):
        # A nested model can hold one path twice.
        def variables():
            return make_variables(self.ALIKE) + make_variables(self.ALIKE)

        optimizer = with_state(variables())
        assert optimizer._paths[2:5] == ("layer/c", "layer/a#2", "layer/b#2")
        assert len(optimizer.clip_rates()) == 6
        other = built(variables())
        other.load_own_variables(save(optimizer))
        assert moments(other) == moments(optimizer)

    def test_a_path_that_repeats_and_looks_numbered(self):
        variables = [
            keras.Variable([0.0], name=name) for name in ("x", "x#2", "x", "x")
        ]
        optimizer = with_state(variables)
        assert len(set(optimizer._paths)) == 4
        assert len(optimizer.clip_rates()) == 4

    def test_a_variable_more_or_fewer(self):
        store = save(with_state())
        more = make_variables() + make_variables({"e": (1,)})
        assert_refused(
            built(more), store, r"Not in the saved state: \['layer/e'\]"
        )
        assert_refused(
            built(make_variables()[:-1]),
            store,
            r"Only in the saved state: \['layer/d'\]",
        )

    def test_another_shape(self):
        store = save(with_state())
        other = make_variables(SHAPES | {"c": (2, 3)})
        assert_refused(
            built(other),
            store,
            r"layer/c has shape \(2, 3\), saved as layer/c with shape \(2, 2\)",
        )

    def test_another_shape_under_other_paths(self):
        store = save(with_state())
        other = make_variables(SHAPES | {"a": (2, 3)}, scope="x")
        assert_refused(
            built(other),
            store,
            r"by build order\): x/a has shape \(2, 3\), saved as layer/a",
        )

    @pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
    def test_weight_decay_exclusions(self, order):
        variables = make_variables()
        optimizer = AdamaxClipped(weight_decay=0.1)
        optimizer.exclude_from_weight_decay(var_names=["a", "d"])
        optimizer.build(variables)
        other_variables = make_variables()
        other = built([other_variables[i] for i in order], weight_decay=0.1)
        other.load_own_variables(save(optimizer))
        assert [other._use_weight_decay(v) for v in other_variables] == [
            False,
            True,
            True,
            False,
        ]
        # A state without any takes them back.
        other.load_own_variables(save(with_state(weight_decay=0.1)))
        assert all(other._use_weight_decay(v) for v in other_variables)

    def test_weight_decay_exclusions_of_the_user_win(self):
        optimizer = AdamaxClipped(weight_decay=0.1)
        optimizer.exclude_from_weight_decay(var_names=["a"])
        optimizer.build(make_variables())
        other = AdamaxClipped(weight_decay=0.1)
        other.exclude_from_weight_decay(var_names=["b"])
        variables = make_variables()
        other.build(variables)
        other.load_own_variables(save(optimizer))
        assert [other._use_weight_decay(v) for v in variables] == [
            True,
            False,
            True,
            True,
        ]

    @pytest.mark.parametrize("is_built", [True, False])
    def test_origin_of_the_clip_rates(self, is_built):
        optimizer = with_state(make_variables(self.ALIKE))
        optimizer.reset_clip_rates()
        rows = keras.ops.convert_to_numpy(optimizer._clip_counts.rows) + (
            [[1, 0, 0, 10, 0, 0], [2, 0, 0, 10, 0, 0], [3, 0, 0, 10, 0, 0]]
        )
        optimizer._clip_counts.rows.assign(rows)
        rates = {"layer/a": 0.1, "layer/b": 0.2, "layer/c": 0.3}
        assert optimizer.clip_rates() == pytest.approx(rates)

        variables = make_variables(self.ALIKE)
        other = AdamaxClipped()
        if is_built:
            other.build(variables[::-1])
        other.load_own_variables(save(optimizer))
        assert other.clip_rates() == pytest.approx(rates)
        other.build(variables[::-1])
        assert other.clip_rates() == pytest.approx(rates)
        assert list(other.clip_rates()) == ["layer/c", "layer/b", "layer/a"]

        renamed = built(make_variables(self.ALIKE, scope="x"))
        renamed.load_own_variables(save(other))
        assert renamed.clip_rates() == pytest.approx(
            {"x/a": 0.3, "x/b": 0.2, "x/c": 0.1}
        )

    def test_origin_is_forgotten_when_the_state_has_none(self):
        optimizer = with_state()
        optimizer.reset_clip_rates()
        optimizer.load_own_variables(save(built()))
        assert all(np.isnan(r) for r in optimizer.clip_rates().values())


class TestOriginOfRestoredStates:
    """`reset_clip_rates` and states that are set from outside."""

    ROUTES = (set_weights, set_state_tree, assign_variables)

    @staticmethod
    def values(optimizer):
        return [np.array(numpy(v)) for v in optimizer.variables]

    @staticmethod
    def train(optimizer, size, steps=3):
        variables = optimizer._trainable_variables
        for _ in range(steps):
            optimizer.apply(
                [keras.ops.full(v.shape, size) for v in variables], variables
            )

    @pytest.mark.parametrize("route", ROUTES)
    @pytest.mark.parametrize(
        "arguments", [{}, {"exclude_from_clipping": ["layer/a"]}]
    )
    def test_goes_with_the_state(self, route, arguments):
        """Before the first reset, right before, after, and between two."""
        optimizer = built(clip_epsilon=0.01, **arguments)
        states = []

        def note():
            states.append(
                (
                    self.values(optimizer),
                    repr(optimizer.clip_rates()),
                    optimizer.clip_statistics(),
                )
            )

        note()
        self.train(optimizer, 0.015)
        note()
        optimizer.reset_clip_rates()
        note()
        self.train(optimizer, 0.5)
        note()
        optimizer.reset_clip_rates()
        note()
        self.train(optimizer, 0.0)
        note()
        assert len({rates for _, rates, _ in states}) >= 4
        for values, rates, totals in [*states, *reversed(states)]:
            route(optimizer, values)
            assert repr(optimizer.clip_rates()) == rates
            assert optimizer.clip_statistics() == totals
        # Exclusions are what they were, and counting goes on.
        self.train(optimizer, 1.0, steps=1)
        is_excluded = [bool(arguments), False, False, False]
        np.testing.assert_array_equal(
            numpy(optimizer._clip_counts.exclusions) > 0, is_excluded
        )
        assert (optimizer.clip_statistics().counted["layer/a"] > 0) != (
            is_excluded[0]
        )

    @pytest.mark.parametrize("route", ROUTES)
    def test_a_state_of_another_optimizer_counts_from_its_beginning(
        self, route
    ):
        other = built(clip_epsilon=0.01)
        self.train(other, 0.015)
        optimizer = built(clip_epsilon=0.01)
        self.train(optimizer, 0.5, steps=9)
        optimizer.reset_clip_rates()
        self.train(optimizer, 0.5)
        route(optimizer, self.values(other))
        assert optimizer.clip_rates() == other.clip_rates()
        assert optimizer.clip_rate() == other.clip_rate()

    def test_totals_alone_that_are_smaller(self):
        optimizer = with_state()
        optimizer.reset_clip_rates()
        counts = np.array(numpy(optimizer.clip_counts))
        counts[:, 0], counts[:, 3] = 1, 10
        counts[:, [1, 2, 4, 5]] = 0
        optimizer.clip_counts.assign(counts)
        assert set(optimizer.clip_rates().values()) == {0.1}

    @pytest.mark.parametrize("route", ROUTES)
    def test_a_later_state_is_saved_with_its_origin(self, route):
        optimizer = with_state(clip_epsilon=0.01)
        optimizer.reset_clip_rates()
        self.train(optimizer, 0.5)
        values, rates = self.values(optimizer), optimizer.clip_rates()
        optimizer.reset_clip_rates()
        self.train(optimizer, 0.5)
        route(optimizer, values)
        other = built()
        other.load_own_variables(save(optimizer))
        assert other.clip_rates() == rates
        assert self.values(other)[-1].tolist() == values[-1].tolist()

    @pytest.mark.skipif(
        keras.backend.backend() != "tensorflow",
        reason="checkpoints are TensorFlow's",
    )
    def test_checkpoint(self, tmp_path):
        import tensorflow as tf

        optimizer = built(clip_epsilon=0.01)
        self.train(optimizer, 0.015)
        rates = optimizer.clip_rates()
        checkpoint = tf.train.Checkpoint(optimizer=optimizer)
        path = checkpoint.save(str(tmp_path / "state"))
        optimizer.reset_clip_rates()
        self.train(optimizer, 0.5)
        checkpoint.restore(path).assert_consumed()
        assert optimizer.clip_rates() == rates

    def test_of_many_resets_the_last_are_known(self):
        optimizer = built(clip_epsilon=0.01)
        for _ in range(clip_statistics._ORIGINS_KEPT + 5):
            self.train(optimizer, 0.5, steps=1)
            optimizer.reset_clip_rates()
        assert (
            len(optimizer._clip_counts._origins)
            == clip_statistics._ORIGINS_KEPT
        )
        assert all(np.isnan(r) for r in optimizer.clip_rates().values())


class TestSettings:
    @pytest.mark.parametrize("saved", [True, False])
    def test_statistics_on_or_off(self, saved):
        optimizer = with_state(track_clip_rate=saved)
        other = built(track_clip_rate=not saved)
        other.load_own_variables(save(optimizer))
        assert moments(other) == moments(optimizer)
        assert other.clip_statistics() == optimizer.clip_statistics()
        assert other.track_clip_rate is not saved

    def test_number_to_schedule(self):
        optimizer = with_state(learning_rate=0.25)
        schedule = schedules.ExponentialDecay(0.5, 7, 0.5)
        other = built(learning_rate=schedule)
        other.load_own_variables(save(optimizer))
        assert moments(other) == moments(optimizer)
        assert float(other.learning_rate) == pytest.approx(0.25, rel=1e-6)
        assert other.get_config()["learning_rate"]["class_name"] == (
            "ExponentialDecay"
        )

    def test_schedule_to_number(self):
        optimizer = with_state(
            learning_rate=schedules.ExponentialDecay(0.5, 7, 0.5)
        )
        other = built(learning_rate=0.125)
        other.load_own_variables(save(optimizer))
        assert moments(other) == moments(optimizer)
        assert other.get_config()["learning_rate"] == 0.125
        assert float(other.learning_rate) == 0.125

    @pytest.mark.parametrize(
        ("saved", "here", "match"),
        [
            (
                {"use_ema": True},
                {},
                "saved with use_ema=True, and this optimizer has use_ema=False",
            ),
            ({}, {"use_ema": True}, "saved with use_ema=False"),
            (
                {"gradient_accumulation_steps": 2},
                {},
                "with gradient_accumulation_steps=2, and this optimizer has "
                "gradient_accumulation_steps=None",
            ),
            (
                {},
                {"gradient_accumulation_steps": 2},
                "with gradient_accumulation_steps=None",
            ),
            (
                {"gradient_accumulation_steps": 2},
                {"gradient_accumulation_steps": 3},
                "gradient_accumulation_steps=2, and this optimizer has "
                "gradient_accumulation_steps=3",
            ),
        ],
    )
    def test_other_state_is_refused(self, saved, here, match):
        store = save(with_state(**saved))
        assert_refused(with_state(**here, seed=1), store, match)
        # Before it is built, too.
        assert_refused(AdamaxClipped(**here), store, match)

    def test_what_is_configuration_and_what_is_state(self):
        optimizer = with_state(
            learning_rate=0.25, beta_1=0.8, beta_2=0.99, clip_multiplier=1.5
        )
        optimizer.learning_rate = 0.125
        optimizer.clip_multiplier = 1.75
        other = built(
            learning_rate=0.5,
            beta_1=0.7,
            beta_2=0.99,
            clip_multiplier=1.5,
            epsilon=1e-3,
        )
        other.load_own_variables(save(optimizer))
        config = other.get_config()
        # The learning rate is state, as in Keras; so is a change since
        # construction. Otherwise what this optimizer was made with holds.
        assert config["learning_rate"] == 0.125
        assert config["clip_multiplier"] == 1.75
        assert config["beta_1"] == 0.7
        assert config["beta_2"] == 0.99
        assert config["epsilon"] == 1e-3
        packed = keras.ops.convert_to_numpy(other._hyperparameters)
        np.testing.assert_array_equal(
            packed,
            np.asarray([0.7, 0.99, 1e-3, 1.75, 1e-4, 0.0], "float32"),
        )

    def test_a_change_does_not_go_into_another_configuration(self):
        optimizer = with_state(clip_multiplier=1.5)
        optimizer.clip_multiplier = 1.75
        other = built(clip_multiplier=2.0)
        other.load_own_variables(save(optimizer))
        assert other.clip_multiplier == 2.0

    def test_a_number_where_there_is_a_schedule_now(self):
        optimizer = with_state(beta_2=0.9)
        optimizer.beta_2 = 0.5
        other = built(beta_2=schedules.ExponentialDecay(0.99, 9, 0.5))
        other.load_own_variables(save(optimizer))
        assert isinstance(other.beta_2, schedules.ExponentialDecay)
        back = built(beta_2=0.75)
        back.load_own_variables(save(other))
        assert back.beta_2 == 0.75

    def test_bias_correction_under_a_schedule_after_a_number(self):
        # The product of all beta_1 so far goes on from 0.5^7.
        optimizer = with_state(beta_1=0.5, bias_correction=True)
        other = built(
            beta_1=schedules.PiecewiseConstantDecay([100], [0.25, 0.5]),
            bias_correction=True,
        )
        other.load_own_variables(save(optimizer))
        product = np.exp(float(other._beta_1_product.variable))
        assert product == pytest.approx(0.5**7, rel=1e-6)
        again = built(
            beta_1=schedules.PiecewiseConstantDecay([100], [0.25, 0.5]),
            bias_correction=True,
        )
        again.load_own_variables(save(other))
        assert float(again._beta_1_product.variable) == float(
            other._beta_1_product.variable
        )

    def test_bias_correction_under_a_schedule_after_accumulation(self):
        optimizer = built(
            beta_1=0.5, bias_correction=True, gradient_accumulation_steps=3
        )
        optimizer._iterations.assign(7)
        store = save(optimizer)
        assert float(store["log_beta_1_product"]) == pytest.approx(
            2 * np.log(0.5)
        )

    def test_bias_correction_without_momentum(self):
        store = save(with_state(beta_1=0, bias_correction=True))
        assert store["log_beta_1_product"] == -np.inf
        store = save(with_state(beta_1=0, iterations=0))
        assert store["log_beta_1_product"] == 0

    def test_state_of_an_optimizer_without_variables(self):
        optimizer = AdamaxClipped(learning_rate=0.25)
        optimizer.learning_rate = 0.5
        other = with_state()
        other.load_own_variables(save(optimizer))
        assert other.get_config() == optimizer.get_config()
        assert int(other.iterations) == 0
        assert all(
            np.all(np.asarray(value) == 0)
            for values in moments(other).values()
            for value in values
        )

    def test_state_without_variables_and_yet_trained(self):
        store = save(AdamaxClipped())
        store["iterations"] = np.asarray(3)
        assert_refused(
            with_state(), store, "of no variables, and the optimizer updates 4"
        )

    def test_exclusions_from_clipping_are_those_of_the_state(self):
        optimizer = with_state(
            make_variables(scope="old"), exclude_from_clipping=["^old/a"]
        )
        store = save(optimizer)
        other = AdamaxClipped.from_config(optimizer.get_config())
        variables = make_variables(scope="new")
        other.build(variables)
        other.load_own_variables(store)
        exclusions = keras.ops.convert_to_numpy(other._clip_counts.exclusions)
        assert exclusions.tolist() == [1, 0, 0, 0]
        before = other.clip_statistics().counted
        other.apply([keras.ops.ones(v.shape) for v in variables], variables)
        after = other.clip_statistics().counted
        assert after["new/a"] == before["new/a"]
        assert after["new/b"] == before["new/b"] + 2

    def test_exclusions_from_clipping_under_other_patterns(self):
        # The configuration was changed on purpose.
        store = save(with_state(exclude_from_clipping=["a$"]))
        other = built(exclude_from_clipping=["b$"])
        other.load_own_variables(store)
        exclusions = keras.ops.convert_to_numpy(other._clip_counts.exclusions)
        assert exclusions.tolist() == [0, 1, 0, 0]

    def test_pattern_that_matches_nothing_and_a_state_that_does_not_say(self):
        other = AdamaxClipped.from_config(
            AdamaxClipped(exclude_from_clipping=["nowhere"]).get_config()
        )
        variables = make_variables()
        other.build(variables)
        other.load_own_variables(save(with_state(exclude_from_clipping=["a"])))
        gradients = [keras.ops.ones(v.shape) for v in variables]
        with pytest.raises(ValueError, match="'nowhere'"):
            other.apply(gradients, variables)


class TestBeforeBuild:
    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"use_ema": True, "gradient_accumulation_steps": 4},
            {"exclude_from_clipping": ["a$"]},
        ],
    )
    def test_state_is_kept_and_applied(self, arguments):
        optimizer = with_state(**arguments)
        optimizer.learning_rate = 1 / 3
        optimizer.clip_multiplier = 2
        other = AdamaxClipped(**arguments)
        other.load_own_variables(save(optimizer))
        assert int(other.iterations) == int(optimizer.iterations)
        assert other.get_config() == optimizer.get_config()
        assert other.skipped_steps() == 3
        assert other.clip_statistics() == optimizer.clip_statistics()
        other.build(make_variables())
        assert everything(other) == everything(optimizer)

    def test_a_state_replaces_one_before(self):
        other = AdamaxClipped()
        other.load_own_variables(save(with_state(seed=1)))
        optimizer = with_state(seed=2)
        other.load_own_variables(save(optimizer))
        other.build(make_variables())
        assert everything(other) == everything(optimizer)

    def test_a_change_between_loading_and_building(self):
        optimizer = with_state(learning_rate=0.25, clip_multiplier=1.5)
        other = AdamaxClipped(learning_rate=0.25, clip_multiplier=1.5)
        other.load_own_variables(save(optimizer))
        other.learning_rate = 0.125
        other.clip_multiplier = 2
        before = other.get_config()
        copy = AdamaxClipped()
        copy.load_own_variables(save(other))
        assert copy.get_config()["learning_rate"] == 0.125
        other.build(make_variables())
        assert other.get_config() == before
        assert moments(other) == moments(optimizer)

    def test_rates_are_reset_between_loading_and_building(self):
        optimizer = with_state()
        other = AdamaxClipped()
        other.load_own_variables(save(optimizer))
        assert other.clip_rates() == optimizer.clip_rates()
        other.reset_clip_rates()
        other.build(make_variables())
        assert all(np.isnan(r) for r in other.clip_rates().values())
        assert other.clip_statistics() == optimizer.clip_statistics()

    def test_saving_what_waits(self):
        optimizer = with_state(use_ema=True)
        optimizer.reset_clip_rates()
        store = save(optimizer)
        for _ in range(2):
            waiting = AdamaxClipped(use_ema=True)
            waiting.load_own_variables(store)
            again = save(waiting)
            assert set(again) == set(store)
            for key in set(store) - {"manifest"}:
                np.testing.assert_array_equal(again[key], store[key])
            assert manifest_of(again) == manifest_of(store)
            store = again

    def test_state_that_does_not_fit(self):
        other = AdamaxClipped()
        store = save(with_state())
        other.load_own_variables(store)
        variables = make_variables(SHAPES | {"c": (5,)})
        gradients = [keras.ops.ones(v.shape) for v in variables]
        before = [keras.ops.convert_to_numpy(v).tolist() for v in variables]
        # Again and again: no silent fresh start after an error.
        for _ in range(3):
            with pytest.raises(ValueError, match=r"layer/c has shape \(5,\)"):
                other.apply(gradients, variables)
        assert before == [
            keras.ops.convert_to_numpy(v).tolist() for v in variables
        ]
        # What was loaded is not lost.
        again = save(other)
        np.testing.assert_array_equal(again["norm.2"], store["norm.2"])
        # A state that fits ends it.
        optimizer = with_state(make_variables(SHAPES | {"c": (5,)}))
        other.load_own_variables(save(optimizer))
        assert moments(other) == moments(optimizer)
        other.apply(gradients, variables)

    @staticmethod
    def loaded(other, how):
        """Gives `other` a state that its variables will not fit."""
        optimizer = with_state(weight_decay=0.25)
        optimizer.learning_rate = 0.25
        optimizer.clip_multiplier = 2.0
        optimizer.beta_1 = 0.5
        optimizer.reset_clip_rates()
        if how == "set_weights":
            other.set_weights([numpy(v) for v in optimizer.variables])
        else:
            other.load_own_variables(save(optimizer))

    @staticmethod
    def scalars(optimizer):
        names = ("clip_multiplier", "beta_1", "weight_decay", "learning_rate")
        config = optimizer.get_config()
        return (
            {k: np.array(v) for k, v in optimizer._scalar_values().items()},
            {name: config[name] for name in names},
            optimizer.skipped_steps(),
        )

    @pytest.mark.parametrize("how", ["load_own_variables", "set_weights"])
    def test_a_state_that_is_refused_changes_no_scalar(self, how):
        variables = make_variables(SHAPES | {"c": (5,)})
        gradients = [keras.ops.ones(v.shape) for v in variables]
        other = AdamaxClipped(weight_decay=0.25)
        other._iterations.assign(3)
        other.clip_epsilon = 0.5
        before = self.scalars(other)
        self.loaded(other, how)
        assert int(other.iterations) == 7
        store = save(other)
        for _ in range(2):
            with pytest.raises(ValueError, match="do(es)? not fit"):
                other.apply(gradients, variables)
            np.testing.assert_equal(self.scalars(other), before)
        # The state itself is still there, with all that it holds.
        again = save(other)
        assert set(again) == set(store)
        for key in set(store) - {"manifest"}:
            np.testing.assert_array_equal(again[key], store[key])
        assert manifest_of(again) == manifest_of(store)
        fitting = AdamaxClipped(weight_decay=0.25)
        fitting.load_own_variables(again)
        fitting.build(make_variables())
        assert int(fitting.iterations) == 7
        if how == "load_own_variables":
            assert fitting.get_config()["clip_multiplier"] == 2.0

    def test_what_was_set_before_it_is_refused_stays(self):
        other = AdamaxClipped(weight_decay=0.25)
        other.beta_2 = 0.75
        self.loaded(other, "load_own_variables")
        other.learning_rate = 0.125
        other.clip_multiplier = 3
        with pytest.raises(ValueError, match="does not fit"):
            other.build(make_variables({"z": (2, 2)}))
        config = other.get_config()
        assert config["learning_rate"] == 0.125
        assert config["clip_multiplier"] == 3
        assert (config["beta_1"], config["beta_2"]) == (0.9, 0.75)
        assert int(other.iterations) == 0

    def test_the_last_of_two_states_is_refused(self):
        other = AdamaxClipped(weight_decay=0.25)
        before = self.scalars(other)
        other.load_own_variables(
            save(with_state(iterations=9, weight_decay=0.25))
        )
        self.loaded(other, "load_own_variables")
        with pytest.raises(ValueError, match="does not fit"):
            other.build(make_variables({"z": (2, 2)}))
        np.testing.assert_equal(self.scalars(other), before)

    def test_weight_decay_exclusions_of_a_refused_state(self):
        optimizer = with_state(weight_decay=0.25)
        store = with_manifest(save(optimizer), not_decayed_pattern="a$")
        other = AdamaxClipped(weight_decay=0.25)
        other.load_own_variables(store)
        variables = make_variables(SHAPES | {"c": (5,)})
        with pytest.raises(ValueError, match="does not fit"):
            other.build(variables)
        assert all(other._use_weight_decay(v) for v in variables)

    def test_pattern_that_only_the_saved_paths_match(self):
        optimizer = with_state(
            make_variables(scope="old"), exclude_from_clipping=["^old/b"]
        )
        other = AdamaxClipped(exclude_from_clipping=["^old/b"])
        other.load_own_variables(save(optimizer))
        other.build(make_variables(scope="new"))
        exclusions = keras.ops.convert_to_numpy(other._clip_counts.exclusions)
        assert exclusions.tolist() == [0, 1, 0, 0]

    def test_weight_decay_exclusions_of_an_optimizer_never_built(self):
        optimizer = AdamaxClipped(weight_decay=0.1)
        optimizer.exclude_from_weight_decay(var_names=["a$", "c$"])
        other = AdamaxClipped(weight_decay=0.1)
        other.load_own_variables(save(optimizer))
        variables = make_variables()
        other.build(variables)
        assert [other._use_weight_decay(v) for v in variables] == [
            False,
            True,
            False,
            True,
        ]

    @pytest.mark.skipif(
        keras.backend.backend() != "tensorflow",
        reason="graphs are TensorFlow's",
    )
    def test_build_while_a_graph_is_traced(self):
        import tensorflow as tf

        optimizer = with_state()
        other = AdamaxClipped()
        other.load_own_variables(save(optimizer))
        variables, expected = make_variables(), make_variables()
        reference = built(expected)
        reference.load_own_variables(save(optimizer))

        @tf.function
        def step(gradients):
            other.apply(gradients, variables)

        for i in range(3):
            gradients = [keras.ops.full(v.shape, 0.1 * i) for v in variables]
            step(gradients)
            reference.apply(gradients, expected)
        assert int(other.iterations) == 10
        for path, values in moments(other).items():
            for actual, wanted in zip(
                values, moments(reference)[path], strict=True
            ):
                np.testing.assert_allclose(actual, wanted, rtol=1e-6)


class TestSetWeights:
    """What Keras uses for whole-model `.h5` files, and users for copies."""

    @staticmethod
    def weights(optimizer):
        return [keras.ops.convert_to_numpy(v) for v in optimizer.variables]

    @pytest.mark.parametrize("is_built", [True, False])
    def test_state_is_set(self, is_built):
        arguments = {"use_ema": True, "gradient_accumulation_steps": 2}
        optimizer = with_state(**arguments)
        optimizer.learning_rate = 1 / 3
        optimizer.beta_1 = 0.5
        other = AdamaxClipped(**arguments)
        if is_built:
            other.build(make_variables())
        other.set_weights(self.weights(optimizer))
        # 1/3 was float32, and comes back as that.
        assert other.get_config()["learning_rate"] == 0.33333334
        assert other.beta_1 == 0.5
        # A change of one number leaves the others as they were set.
        other.clip_epsilon = 1e-3
        optimizer.clip_epsilon = 1e-3
        other.build(make_variables())
        assert everything(other)[0] == everything(optimizer)[0]
        assert other.clip_statistics() == optimizer.clip_statistics()

    def test_what_waits_can_be_saved(self):
        optimizer = with_state()
        waiting = AdamaxClipped()
        waiting.set_weights(self.weights(optimizer))
        waiting.learning_rate = 0.125
        for is_built in (True, False):
            other = AdamaxClipped()
            if is_built:
                other.build(make_variables())
            other.load_own_variables(save(waiting))
            other.build(make_variables())
            assert moments(other) == moments(optimizer)
            assert int(other.iterations) == 7
            assert other.get_config()["learning_rate"] == 0.125

    @pytest.mark.parametrize("change", ["fewer", "more", "none", "shape"])
    def test_weights_that_do_not_fit(self, change):
        weights = self.weights(with_state())
        weights = {
            "fewer": weights[:-1],
            "more": [*weights, weights[0]],
            "none": [],
            "shape": [*weights[:5], np.zeros((9, 9)), *weights[6:]],
        }[change]
        match = {
            "shape": r"layer_a_momentum has shape \(3, 2\)",
        }.get(change, f"there must be 15 arrays.*Received: {len(weights)}")
        optimizer = with_state(seed=1)
        before = everything(optimizer)
        with pytest.raises(ValueError, match=match):
            optimizer.set_weights(weights)
        assert everything(optimizer) == before

        variables = make_variables()
        gradients = [keras.ops.ones(v.shape) for v in variables]
        other = AdamaxClipped()
        if change == "none":
            with pytest.raises(ValueError, match="must be 5 arrays"):
                other.set_weights(weights)
            return
        other.set_weights(weights)
        for _ in range(2):
            with pytest.raises(ValueError, match="weights of the optimizer do"):
                other.apply(gradients, variables)

    @pytest.mark.parametrize("is_built", [True, False])
    def test_exclusions_that_this_optimizer_does_not_have(self, is_built):
        """Updates of an optimizer that excludes nothing do not look there."""
        optimizer = AdamaxClipped(exclude_from_clipping=["layer/a"])
        optimizer.build(make_variables())
        weights = self.weights(optimizer)
        same = AdamaxClipped(exclude_from_clipping=["layer/a"])
        same.build(make_variables())
        same.set_weights(weights)
        other = AdamaxClipped()
        with pytest.raises(
            ValueError, match=r"layer/a are excluded.*exclude_from_clipping="
        ):
            if is_built:
                other.build(make_variables())
            other.set_weights(weights)
            other.build(make_variables())
        with pytest.raises(ValueError, match="layer/a are excluded"):
            if is_built:
                other.set_weights(weights)
            else:
                other.apply(
                    [keras.ops.ones(v.shape) for v in make_variables()],
                    make_variables(),
                )

    @pytest.mark.parametrize("is_built", [True, False])
    @pytest.mark.parametrize("place", [0, 2, 4])
    @pytest.mark.parametrize("bad", ["text", "shape"])
    def test_what_is_no_number_changes_nothing(self, is_built, place, bad):
        weights = self.weights(with_state())
        weights[place] = {
            "text": np.full(weights[place].shape, "one"),
            "shape": np.zeros((2, 2, 2)),
        }[bad]
        optimizer = with_state(seed=1) if is_built else AdamaxClipped()
        before = everything(optimizer)
        with pytest.raises(ValueError, match="weights of the optimizer do not"):
            optimizer.set_weights(weights)
        assert everything(optimizer) == before


class TestDamage:
    @pytest.mark.parametrize("is_built", [True, False])
    @pytest.mark.parametrize(
        "changes",
        [
            {"clip_rate_origin": 3},
            {"clip_rate_origin": [["layer/a", "x", 1]]},
            {"learning_rate": "fast"},
            {"learning_rate": None},
            {"current": {"beta_1": "large"}},
            {"current": [1]},
            {"constructed": {}},
            {"not_decayed_pattern": "("},
        ],
    )
    def test_manifest_with_strange_values(self, is_built, changes):
        """Everything is looked at before anything changes."""
        optimizer = with_state(seed=1) if is_built else AdamaxClipped()
        store = with_manifest(save(with_state()), **changes)
        assert_refused(optimizer, store, "is damaged.*manifest")

    @pytest.mark.parametrize("is_built", [True, False])
    @pytest.mark.parametrize(
        "role", ["iterations", "skipped_steps", "log_beta_1_product"]
    )
    @pytest.mark.parametrize("bad", [np.zeros(3), np.array("one")])
    def test_a_scalar_that_is_none(self, is_built, role, bad):
        store = save(with_state())
        manifest = manifest_of(store)
        for entry in manifest["entries"]:
            if entry["key"] == role:
                entry["shape"] = list(bad.shape)
        store = with_manifest(store, entries=manifest["entries"])
        optimizer = with_state(seed=1) if is_built else AdamaxClipped()
        assert_refused(optimizer, store | {role: bad}, f"damaged.*{role}")

    def test_variables_that_the_manifest_does_not_know(self):
        store = with_manifest(save(with_state()), not_decayed=[7])
        assert_refused(with_state(seed=1), store, "damaged.*other variables")

    def test_an_array_of_text(self):
        store = save(with_state())
        store["norm.1"] = np.full(store["norm.1"].shape, "one")
        assert_refused(with_state(seed=1), store, "damaged.*dtype")

    def refused(self, store, match):
        assert_refused(with_state(seed=1), store, match)
        assert_refused(AdamaxClipped(), store, match)

    def test_a_newer_format(self):
        store = with_manifest(save(with_state()), format_version=2)
        self.refused(
            store, r"format version is 2, and this one reads up to 1\. Upgrade"
        )

    @pytest.mark.parametrize(
        "text", [b"", b"\x80\x81", b"{", b"[]", b"{}", b"null"]
    )
    def test_manifest_that_is_none(self, text):
        store = save(with_state()) | {"manifest": np.frombuffer(text, "uint8")}
        self.refused(store, "state is damaged: its manifest")

    @pytest.mark.parametrize(
        "name", [*manifest_of(save(AdamaxClipped())), "everything"]
    )
    def test_manifest_that_lacks_something(self, name):
        store = save(with_state())
        if name == "everything":
            remove = set(manifest_of(store)) - {"format_version"}
            match = "lacks kind, roles, paths"
        else:
            remove = {name}
            match = f"its manifest lacks {name}"
        if name == "format_version":
            match = "does not say its format"
        self.refused(with_manifest(store, remove), match)

    @pytest.mark.parametrize(
        "key", ["iterations", "norm.2", "clip_counts.0", "average.1"]
    )
    def test_missing_array(self, key):
        store = save(with_state(use_ema=True))
        del store[key]
        for optimizer in with_state(use_ema=True), AdamaxClipped(use_ema=True):
            assert_refused(optimizer, store, f"damaged: it lacks {key}")

    def test_missing_array_and_entry(self):
        store = save(with_state())
        del store["clip_counts.1"]
        entries = manifest_of(store)["entries"]
        store = with_manifest(
            store, entries=[e for e in entries if e["key"] in store]
        )
        self.refused(store, r"damaged: it lacks clip_counts\.1")

    def test_array_of_another_shape(self):
        store = save(with_state())
        store["norm.0"] = store["norm.0"][:2]
        self.refused(
            store, r"damaged: norm\.0 has shape \(2, 2\) and not \(3, 2\)"
        )

    def test_array_and_entry_of_another_shape(self):
        store = save(with_state())
        store["norm.0"] = store["norm.0"][:2]
        entries = manifest_of(store)["entries"]
        for entry in entries:
            if entry["key"] == "norm.0":
                entry["shape"] = [2, 2]
        assert_refused(
            with_state(seed=1),
            with_manifest(store, entries=entries),
            r"damaged: what is for .*a_norm of shape \(3, 2\) has shape",
        )

    def test_entries_of_no_known_kind(self):
        self.refused(
            {"kernel": np.zeros(2), "bias": np.zeros(2)},
            r"of no known kind.*\['bias', 'kernel'\]",
        )

    def test_truncated_file(self, tmp_path):
        model = small_model(AdamaxClipped())
        fit(model)
        path = tmp_path / "model.weights.h5"
        model.save_weights(path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        before = everything(model.optimizer)
        with pytest.raises(OSError, match="truncated"):
            model.load_weights(path)
        assert everything(model.optimizer) == before

    def test_damaged_file(self, tmp_path):
        import h5py

        model = small_model(AdamaxClipped())
        fit(model)
        path = tmp_path / "model.weights.h5"
        model.save_weights(path)
        with h5py.File(path, "r+") as file:
            del file["optimizer/vars/momentum.0"]
        before = everything(model.optimizer)
        with pytest.raises(ValueError, match=r"damaged: it lacks momentum\.0"):
            model.load_weights(path)
        assert everything(model.optimizer) == before


class TestMissingState:
    @pytest.mark.parametrize("is_built", [True, False])
    def test_empty_store(self, is_built):
        optimizer = with_state() if is_built else AdamaxClipped()
        before = everything(optimizer)
        with pytest.warns(UserWarning, match="no saved state.*starts fresh"):
            optimizer.load_own_variables({})
        assert everything(optimizer) == before

    def test_weights_without_an_optimizer(self, tmp_path):
        model = small_model(AdamaxClipped())
        uncompiled = keras.Sequential.from_config(model.get_config())
        path = tmp_path / "model.weights.h5"
        uncompiled.save_weights(path)
        fit(model)
        before = everything(model.optimizer)
        with pytest.warns(UserWarning, match="no saved state"):
            model.load_weights(path)
        assert everything(model.optimizer) == before

    @pytest.mark.slow
    @pytest.mark.parametrize("is_built", [True, False])
    @pytest.mark.parametrize(
        ("name", "saved_as"),
        [
            ("Adam", "adam"),
            ("AdamW", "adam_w"),
            ("SGD", "(?i:sgd)"),
            ("RMSprop", "rm_?sprop"),
        ],
    )
    def test_state_of_another_optimizer(
        self, tmp_path, name, saved_as, is_built
    ):
        other = small_model(getattr(keras.optimizers, name)())
        fit(other)
        path = tmp_path / "model.weights.h5"
        other.save_weights(path)
        model = small_model(AdamaxClipped())
        if is_built:
            fit(model)
        before = everything(model.optimizer)
        with pytest.raises(
            ValueError,
            match=f"another optimizer: it was saved under the name '{saved_as}",
        ):
            model.load_weights(path)
        assert everything(model.optimizer) == before

    def test_our_state_and_another_optimizer(self, tmp_path):
        model = small_model(AdamaxClipped())
        fit(model)
        path = tmp_path / "model.weights.h5"
        model.save_weights(path)
        other = small_model(keras.optimizers.Adam())
        with pytest.warns(UserWarning, match="Skipping variable loading"):
            other.load_weights(path)
        np.testing.assert_array_equal(
            other.get_weights()[0], model.get_weights()[0]
        )

    def test_every_optimizer_of_keras_is_known(self):
        names = set()
        for cls in vars(keras.optimizers).values():
            if (
                not isinstance(cls, type)
                or not issubclass(cls, keras.optimizers.Optimizer)
                or cls
                in (
                    keras.optimizers.Optimizer,
                    keras.optimizers.Adamax,
                    keras.optimizers.LossScaleOptimizer,
                    keras.optimizers.MultiOptimizer,
                    AdamaxClipped,
                )
            ):
                continue
            arguments = {"learning_rate": 0.1} if "Muon" in str(cls) else {}
            names.add(re.sub(r"_\d+$", "", cls(**arguments).name))
        assert len(names) >= 13
        assert names <= set(saved_state.OTHER_OPTIMIZERS)

    def test_skip_mismatch(self, tmp_path):
        model = small_model(AdamaxClipped())
        fit(model)
        path = tmp_path / "model.weights.h5"
        model.save_weights(path)
        other = small_model(AdamaxClipped(use_ema=True))
        fit(other, seed=1)
        before = everything(other.optimizer)
        with pytest.warns(
            UserWarning, match=r"(?s)could not be loaded.*use_ema=False"
        ):
            other.load_weights(path, skip_mismatch=True)
        assert everything(other.optimizer) == before
        np.testing.assert_array_equal(
            other.get_weights()[0], model.get_weights()[0]
        )

    def test_skip_mismatch_of_another_model(self, tmp_path):
        model = small_model(AdamaxClipped())
        fit(model)
        path = tmp_path / "model.weights.h5"
        model.save_weights(path)
        other = small_model(AdamaxClipped(), units=5)
        other.optimizer.build(other.trainable_variables)
        before = everything(other.optimizer)
        with pytest.warns(UserWarning, match="could not be loaded"):
            other.load_weights(path, skip_mismatch=True)
        assert everything(other.optimizer) == before


class TestAdamax:
    """States of `keras.optimizers.Adamax`."""

    SAME_RULE = {
        "clip_gradients": False,
        "bias_correction": True,
        "epsilon": 1e-7,
        "learning_rate": 0.5,
    }

    @staticmethod
    def adamax(variables=None, **arguments):
        """An Adamax with a state of its own."""
        optimizer = keras.optimizers.Adamax(
            **{"learning_rate": 0.25, **arguments}
        )
        optimizer.build(make_variables() if variables is None else variables)
        rng = np.random.default_rng(5)
        for variable in optimizer.variables:
            if "learning_rate" in variable.path:
                continue
            if "iteration" in variable.path:
                variable.assign(6)
            else:
                variable.assign(rng.uniform(0.1, 1, variable.shape))
        return optimizer

    @pytest.mark.parametrize("is_built", [True, False])
    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"use_ema": True},
            {"gradient_accumulation_steps": 4},
            {"use_ema": True, "gradient_accumulation_steps": 4},
            {"learning_rate": schedules.ExponentialDecay(0.5, 3, 0.5)},
            {
                "learning_rate": schedules.ExponentialDecay(0.5, 3, 0.5),
                "use_ema": True,
                "gradient_accumulation_steps": 4,
            },
        ],
        ids=id_of,
    )
    def test_it_goes_on(self, arguments, is_built):
        variables, other_variables = make_variables(), make_variables()
        adamax = self.adamax(variables, **arguments)
        store = save(adamax)
        other = AdamaxClipped(**self.SAME_RULE | arguments)
        if is_built:
            other.build(other_variables)
        other.load_own_variables(store)
        other.build(other_variables)
        assert int(other._iterations) == 6
        if "learning_rate" not in arguments:
            # State, as in Keras.
            assert other.get_config()["learning_rate"] == 0.25
        rng = np.random.default_rng(3)
        step = stepper(adamax, variables)
        other_step = stepper(other, other_variables)
        for _ in range(3):
            gradients = [rng.normal(size=v.shape) for v in variables]
            step(gradients)
            other_step(gradients)
        for variable, other_variable in zip(
            variables, other_variables, strict=True
        ):
            np.testing.assert_allclose(
                keras.ops.convert_to_numpy(variable),
                keras.ops.convert_to_numpy(other_variable),
                rtol=2e-5,
            )
        assert np.ptp(keras.ops.convert_to_numpy(variables[0])) > 0

    def test_counts_and_the_rest_start_afresh(self):
        other = with_state(spike_threshold=0.4)
        other.reset_clip_rates()
        other.load_own_variables(save(self.adamax()))
        assert set(other.clip_statistics().counted.values()) == {0}
        assert other.skipped_steps() == other.spike_steps() == 0
        assert all(np.isnan(r) for r in other.clip_rates().values())

    @pytest.mark.parametrize("is_built", [True, False])
    def test_schedule_to_number(self, is_built):
        adamax = self.adamax(
            learning_rate=schedules.ExponentialDecay(0.5, 3, 0.5)
        )
        other = AdamaxClipped(learning_rate=0.125)
        if is_built:
            other.build(make_variables())
        other.load_own_variables(save(adamax))
        other.build(make_variables())
        assert other.get_config()["learning_rate"] == 0.125
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(other._norms[0]),
            keras.ops.convert_to_numpy(adamax._u[0]),
        )

    def test_learning_rate_set_between_loading_and_building(self):
        other = AdamaxClipped(learning_rate=0.5)
        other.load_own_variables(save(self.adamax()))
        other.learning_rate = 0.0625
        other.build(make_variables())
        assert other.get_config()["learning_rate"] == 0.0625
        assert int(other.iterations) == 6

    def test_waiting_state_is_saved(self):
        waiting = AdamaxClipped()
        waiting.load_own_variables(save(self.adamax()))
        other = built()
        other.load_own_variables(save(waiting))
        waiting.build(make_variables())
        assert moments(other) == moments(waiting)
        assert int(other.iterations) == 6

    @pytest.mark.parametrize(
        ("saved", "here", "match"),
        [
            (
                {"use_ema": True},
                {},
                "Saved: learning rate a number, use_ema=True, gradient "
                "accumulation off, or learning rate a number, use_ema=False, "
                r"gradient accumulation on\. Here: use_ema=False, gradient "
                "accumulation off",
            ),
            (
                {"use_ema": True},
                {"gradient_accumulation_steps": 3},
                "With gradient_accumulation_steps=3 the accumulators are 0 "
                "after 6 calls, and in the saved state they are not",
            ),
            (
                {},
                {"gradient_accumulation_steps": 2},
                r"accumulation off\. Here: use_ema=False, gradient "
                "accumulation on",
            ),
            (
                {},
                {
                    "bias_correction": True,
                    "beta_1": schedules.ExponentialDecay(0.9, 3, 0.5),
                },
                "does not say which values beta_1 had",
            ),
        ],
    )
    def test_other_settings(self, saved, here, match):
        assert_refused(
            with_state(**here, seed=1), save(self.adamax(**saved)), match
        )

    def test_accumulators_are_no_averages(self):
        adamax = self.adamax(gradient_accumulation_steps=3)
        for accumulator in adamax._accumulated_gradients:
            accumulator.assign(np.zeros(accumulator.shape))
        assert_refused(
            with_state(use_ema=True),
            save(adamax),
            "there are averages of the weights, and in the saved state they "
            "are all 0",
        )

    def test_other_variables(self):
        adamax = self.adamax(make_variables(SHAPES | {"a": (7,)}))
        assert_refused(
            with_state(),
            save(adamax),
            r"has 10 numbered entries of shapes.*would have other ones for the "
            r"variables \['layer/a', 'layer/b', 'layer/c', 'layer/d'\]",
        )

    def test_other_variables_before_build(self):
        other = AdamaxClipped()
        other.load_own_variables(save(self.adamax()))
        variables = make_variables(SHAPES | {"a": (7,)})
        gradients = [keras.ops.ones(v.shape) for v in variables]
        for _ in range(2):
            with pytest.raises(ValueError, match="10 numbered entries"):
                other.apply(gradients, variables)

    def test_ambiguity(self):
        # Of scalars, a learning rate could as well be an average.
        variables = make_variables({"d": ()})
        assert_refused(
            with_state(make_variables({"d": ()})),
            save(self.adamax(variables)),
            r"is ambiguous: its numbered entries fit a keras.optimizers.Adamax "
            "in 3 ways",
        )

    def test_pattern_that_matches_nothing(self):
        other = AdamaxClipped.from_config(
            AdamaxClipped(exclude_from_clipping=["nowhere"]).get_config()
        )
        other.build(make_variables())
        assert_refused(other, save(self.adamax()), "'nowhere'")

    def test_weights_file(self, tmp_path):
        path = tmp_path / "model.weights.h5"
        model = small_model(keras.optimizers.Adamax(0.25))
        fit(model)
        model.save_weights(path)
        other = small_model(AdamaxClipped(**self.SAME_RULE))
        other.load_weights(path)
        fit(model, seed=1)
        fit(other, seed=1)
        for expected, actual in zip(
            model.get_weights(), other.get_weights(), strict=True
        ):
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
        assert int(other.optimizer.iterations) == 6

    def test_weights_file_of_mixed_precision(self, tmp_path):
        path = tmp_path / "model.weights.h5"
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy("mixed_float16")
        try:
            model = small_model(keras.optimizers.Adamax(0.25))
            fit(model)
            model.save_weights(path)
            other = small_model(AdamaxClipped(**self.SAME_RULE))
        finally:
            keras.config.set_dtype_policy(before)
        other.optimizer.build(other.trainable_variables)
        # Keras's wrapper counts the variables of both; ours are other ones.
        with pytest.warns(UserWarning, match="'loss_scale_optimizer'"):
            other.load_weights(path)
        inner = other.optimizer.inner_optimizer
        assert int(inner.iterations) == int(model.optimizer.iterations) > 0
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(inner._momentums[0]),
            keras.ops.convert_to_numpy(model.optimizer.inner_optimizer._m[0]),
        )
