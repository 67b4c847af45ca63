import csv
import math
import os
import signal
import threading

import keras
import keras_tuner
import numpy as np
import optuna
import pytest

from keras_adamax import AdamaxClipped, _atomic_files
from keras_adamax_tuning import (
    AdamaxClippedHyperModel,
    AdamaxClippedSpace,
    ConsecutiveFailuresError,
    OptunaOracle,
    OptunaTuner,
    SearchMismatchError,
    StorageError,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 3)).astype("float32")
Y = X @ np.array([[1.0], [-2.0], [0.5]], "float32")


def build_model(hp, optimizer=AdamaxClipped):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    rate = hp.Float("rate", 1e-3, 1.0, sampling="log")
    if optimizer is AdamaxClipped:
        made = AdamaxClipped(rate, clip_epsilon=1.0)
    else:
        made = optimizer(rate)
    # Three batches are sooner trained than compiled.
    model.compile(made, "mse", run_eagerly=True)
    return model


def make_tuner(
    folder,
    hypermodel=build_model,
    objective="val_loss",
    kind=OptunaTuner,
    **kwargs,
):
    names = ("executions_per_trial", "callbacks_factory", "loss", "optimizer")
    tuner_kwargs = {k: kwargs.pop(k) for k in names if k in kwargs}
    oracle_kwargs = {"max_trials": 2, "seed": 0, "sampler": "random", **kwargs}
    return kind(
        hypermodel,
        oracle=OptunaOracle(objective, **oracle_kwargs),
        directory=folder,
        project_name="trials",
        **tuner_kwargs,
    )


def search(tuner, epochs=2, **kwargs):
    tuner.search(
        X,
        Y,
        validation_data=(X, Y),
        epochs=epochs,
        batch_size=16,
        verbose=0,
        **kwargs,
    )
    return tuner


def read_history(tuner, trial):
    path = tuner.trial_folder(trial.trial_id) / "history.csv"
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def evaluate(model):
    return model.evaluate(X, Y, batch_size=16, verbose=0)


# What a trial leaves.


def test_a_search_records_scores_weights_and_what_ours_show(tmp_path):
    tuner = search(make_tuner(tmp_path))
    trials = tuner.oracle.logical_trials()
    assert [t.state for t in trials] == ["completed", "completed"]
    for trial in trials:
        rows = read_history(tuner, trial)
        assert [(r["execution"], r["epoch"]) for r in rows] == [
            ("0", "0"),
            ("0", "1"),
        ]
        losses = [float(r["val_loss"]) for r in rows]
        assert trial.score == min(losses)
        assert trial.best_epoch == losses.index(min(losses))
        assert trial.metrics == {
            key: float(value)
            for key, value in rows[-1].items()
            if key not in ("execution", "epoch")
        }
        assert 0 <= trial.metrics["clip_rate"] <= 1
        assert trial.metrics["weight_delta"] > 0
        assert trial.checkpoint == {
            "execution": 0,
            "epoch": trial.best_epoch,
            "score": trial.score,
        }
        folder = tuner.trial_folder(trial.trial_id)
        names = sorted(p.name for p in folder.iterdir())
        assert names == [
            "build_config.json",
            "checkpoint.weights.h5",
            "history.csv",
            "weights.csv",
        ]
        assert trial.seconds > 0
    # KerasTuner's own record is not written anywhere; ours says whose it is.
    files = [p.name for p in tmp_path.rglob("*.json")]
    assert set(files) == {"build_config.json", "search.json"}


def test_another_tuner_loads_the_best_with_the_optimizers_state(tmp_path):
    best = min(
        search(make_tuner(tmp_path)).oracle.logical_trials(),
        key=lambda t: t.score,
    )
    other = make_tuner(tmp_path)
    (model,) = other.get_best_models()
    assert evaluate(model) == best.score
    steps_an_epoch = 2
    expected = (best.best_epoch + 1) * steps_an_epoch
    assert int(model.optimizer.iterations) == expected
    norms = [v for v in model.optimizer.variables if "norm" in v.path]
    assert norms and all(np.any(np.array(v) != 0) for v in norms)
    (hp,) = other.get_best_hyperparameters()
    assert hp.values == best.hyperparameters


@pytest.mark.slow
def test_results_summary(tmp_path, capsys):
    tuner = search(make_tuner(tmp_path))
    make_tuner(tmp_path).results_summary()
    printed = capsys.readouterr().out
    for trial in tuner.oracle.logical_trials():
        assert f"Score: {trial.score}" in printed


def test_weights_are_of_the_best_epoch_and_not_of_the_last(tmp_path):
    # This rate makes it worse and worse.
    def build(hp):
        model = build_model(hp, keras.optimizers.SGD)
        model.optimizer.learning_rate = 5.0
        return model

    tuner = search(make_tuner(tmp_path, build, max_trials=1), epochs=3)
    (trial,) = tuner.oracle.logical_trials()
    losses = [float(r["val_loss"]) for r in read_history(tuner, trial)]
    assert losses[0] < losses[-1] and trial.best_epoch == 0
    assert trial.score == losses[0]
    assert evaluate(tuner.get_best_models()[0]) == losses[0]


@pytest.mark.slow
def test_the_score_is_the_mean_of_executions_and_the_best_ones_is_kept(
    tmp_path,
):
    tuner = search(make_tuner(tmp_path, max_trials=1, executions_per_trial=3))
    (trial,) = tuner.oracle.logical_trials()
    rows = read_history(tuner, trial)
    losses = {}
    for row in rows:
        losses.setdefault(int(row["execution"]), []).append(
            float(row["val_loss"])
        )
    bests = [min(losses[e]) for e in range(3)]
    assert len(set(bests)) == 3  # each has a seed of its own
    assert trial.score == math.fsum(bests) / 3
    best = min(range(3), key=lambda e: bests[e])
    assert trial.checkpoint["execution"] == best
    assert trial.checkpoint["score"] == bests[best]
    assert trial.checkpoint["epoch"] == losses[best].index(bests[best])
    assert evaluate(tuner.get_best_models()[0]) == bests[best]
    folder = tuner.trial_folder(trial.trial_id)
    names = sorted(p.name for p in folder.iterdir())
    assert names == [
        "build_config.json",
        "checkpoint.weights.h5",
        "execution_0",
        "execution_1",
        "execution_2",
        "history.csv",
    ]


def test_a_model_that_only_data_build_is_loaded(tmp_path):
    def build(hp):
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile(
            keras.optimizers.Adam(hp.Float("rate", 0.01, 0.1)),
            "mse",
            run_eagerly=True,
        )
        return model

    tuner = search(make_tuner(tmp_path, build, max_trials=1))
    (trial,) = tuner.oracle.logical_trials()
    (model,) = make_tuner(tmp_path, build, max_trials=1).get_best_models()
    assert evaluate(model) == trial.score
    assert int(model.optimizer.iterations) == 2 * (trial.best_epoch + 1)


class ReturnsNumber(keras_tuner.HyperModel):
    def build(self, hp):
        return build_model(hp)

    def fit(self, hp, model, *args, **kwargs):
        super().fit(hp, model, *args, **kwargs)
        return evaluate(model) * 2


def test_an_objective_computed_after_training_is_of_the_final_weights(
    tmp_path,
):
    tuner = search(
        make_tuner(
            tmp_path,
            ReturnsNumber(),
            keras_tuner.Objective("twice", "min"),
            max_trials=1,
        )
    )
    (trial,) = tuner.oracle.logical_trials()
    assert trial.score == 2 * evaluate(tuner.get_best_models()[0])
    assert trial.metrics["twice"] == trial.score
    assert trial.checkpoint["epoch"] == 1


@pytest.mark.slow
def test_our_hypermodel_over_our_space(tmp_path):
    space = AdamaxClippedSpace(learning_rate=(1e-3, 1e-1))
    hypermodel = AdamaxClippedHyperModel(
        lambda hp: build_model(keras_tuner.HyperParameters()), space
    )
    tuner = search(make_tuner(tmp_path, hypermodel))
    for trial in tuner.oracle.logical_trials():
        assert trial.state == "completed", trial.reason
    model = tuner.get_best_models()[0]
    best = tuner.oracle.get_best_trials()[0]
    assert evaluate(model) == best.score
    assert int(model.optimizer.iterations) == 2 * (best.best_step + 1)


def test_a_subclass_may_search_anything(tmp_path):
    class Black(OptunaTuner):
        def run_trial(self, trial, *args, **kwargs):
            hp = trial.hyperparameters
            return hp.Float("x", -1.0, 1.0) ** 2

    oracle = OptunaOracle(max_trials=4, seed=0)
    tuner = Black(None, oracle=oracle, directory=tmp_path, project_name="p")
    tuner.search(verbose=0)
    assert len({t.score for t in oracle.logical_trials()}) == 4
    for t in oracle.logical_trials():
        assert t.score == t.hyperparameters["x"] ** 2


# Callbacks.


class Holder(keras.callbacks.Callback):
    def __init__(self, folder):
        super().__init__()
        self.lock = threading.Lock()  # nothing that could be copied
        self.folder = folder
        self.epochs = 0

    def on_epoch_end(self, epoch, logs=None):
        with self.lock:
            self.epochs += 1
        logs["mine"] = float(self.epochs)


def test_a_factory_makes_callbacks_for_each_execution(tmp_path):
    made = []

    def factory(trial, hp, folder):
        assert folder.is_dir() and hp.get("rate") > 0
        made.append((trial.trial_id, Holder(folder)))
        return [made[-1][1]]

    tuner = search(
        make_tuner(
            tmp_path,
            callbacks_factory=factory,
            executions_per_trial=2,
            max_trials=1,
        )
    )
    assert [name for name, _ in made] == ["0000", "0000"]
    assert [holder.epochs for _, holder in made] == [2, 2]
    assert len({holder.folder for _, holder in made}) == 2
    trial = tuner.oracle.logical_trials()[0]
    assert trial.metrics["mine"] == 2.0 and "clip_rate" not in trial.metrics


def test_callbacks_given_to_search_are_copied(tmp_path):
    class Counter(keras.callbacks.Callback):
        epochs = 0

        def on_epoch_end(self, epoch, logs=None):
            self.epochs += 1
            logs["count"] = float(self.epochs)

    mine = Counter()
    tuner = search(make_tuner(tmp_path), callbacks=[mine])
    assert mine.epochs == 0
    assert [t.metrics["count"] for t in tuner.oracle.logical_trials()] == [2, 2]


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.SGD,
        pytest.param(AdamaxClipped, marks=pytest.mark.slow),
    ],
)
def test_clip_rates_are_logged_where_there_are_any(tmp_path, optimizer):
    tuner = search(
        make_tuner(
            tmp_path, lambda hp: build_model(hp, optimizer), max_trials=1
        )
    )
    (trial,) = tuner.oracle.logical_trials()
    assert ("clip_rate" in trial.metrics) == (optimizer is AdamaxClipped)
    assert trial.metrics["weight_delta"] > 0


# Pruning.


@pytest.mark.slow
def test_the_pruner_is_asked_each_epoch(tmp_path):
    pruner = optuna.pruners.ThresholdPruner(upper=1e-9, n_warmup_steps=1)
    tuner = search(make_tuner(tmp_path, pruner=pruner), epochs=4)
    for number, trial in enumerate(tuner.oracle.logical_trials()):
        assert trial.state == "pruned"
        rows = read_history(tuner, trial)
        assert len(rows) == 2  # it was asked after the warm-up
        reported = tuner.oracle.study.trials[number].intermediate_values
        assert reported == {
            i: float(row["val_loss"]) for i, row in enumerate(rows)
        }
        model = tuner.load_model(tuner.oracle.get_trial(trial.trial_id))
        assert evaluate(model) == trial.score == min(reported.values())
    assert tuner.get_best_models() == []


# Failures.


def fail_at(number, how):
    """A builder whose n-th trial goes wrong."""
    calls = {"trials": -1}

    class Failing(keras_tuner.HyperModel):
        def build(self, hp):
            return build_model(hp)

        def fit(self, hp, model, *args, **kwargs):
            calls["trials"] += 1
            if calls["trials"] == number:
                how(model, kwargs)
            return super().fit(hp, model, *args, **kwargs)

    return Failing()


class Poison(keras.callbacks.Callback):
    def __init__(self, value, epoch):
        super().__init__()
        self.value, self.epoch = value, epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            logs["val_loss"] = self.value


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        pytest.param(float("inf"), marks=pytest.mark.slow),
        pytest.param(-float("inf"), marks=pytest.mark.slow),
    ],
)
def test_an_objective_that_is_not_finite_fails_its_trial(tmp_path, value):
    def poison(model, kwargs):
        kwargs["callbacks"].insert(0, Poison(value, 1))

    tuner = make_tuner(tmp_path, fail_at(0, poison))
    search(tuner, epochs=3)
    failed, completed = tuner.oracle.logical_trials()
    assert (failed.state, failed.epoch) == ("failed", 1)
    assert failed.reason == (
        f"The objective 'val_loss' is {value} after epoch 1 (epochs count "
        "from 0)."
    )
    assert failed.traceback is None and failed.score is None
    assert len(read_history(tuner, failed)) == 2
    assert completed.state == "completed"


def test_an_exception_keeps_its_traceback_and_the_search_goes_on(tmp_path):
    def explode(model, kwargs):
        raise ZeroDivisionError("of the\nuser's own")

    tuner = search(make_tuner(tmp_path, fail_at(0, explode)))
    failed, completed = tuner.oracle.logical_trials()
    assert failed.state == "failed" and completed.state == "completed"
    assert failed.reason == "ZeroDivisionError: of the user's own"
    assert "in explode" in failed.traceback
    assert failed.attempts == 1


def test_an_exception_in_build_is_a_failed_trial(tmp_path):
    def build(hp):
        if hp.Float("rate", 0.1, 0.2) != 0.1:  # the default builds
            raise ValueError("no such model")
        return build_model(keras_tuner.HyperParameters())

    tuner = make_tuner(tmp_path, build, max_consecutive_failures=2)
    with pytest.raises(ConsecutiveFailuresError, match="no such model"):
        search(tuner)
    trials = tuner.oracle.logical_trials()
    assert [t.state for t in trials] == ["failed", "failed"]
    assert "no such model" in trials[0].traceback


def test_what_is_no_model_ends_the_search_and_counts_as_nothing(tmp_path):
    def build(hp):
        if hp.Float("rate", 0.1, 0.2) != 0.1:
            return "a model"
        return build_model(keras_tuner.HyperParameters())

    tuner = make_tuner(tmp_path, build)
    with pytest.raises(TypeError, match="a valid Keras Model"):
        search(tuner)
    (trial,) = tuner.oracle.logical_trials()
    assert trial.state == "running"  # to be tried again once it is mended


def test_an_objective_that_nothing_reports_ends_the_search(tmp_path):
    tuner = make_tuner(tmp_path, objective="val_accuracy")
    with pytest.raises(ValueError, match="must be among the metrics"):
        search(tuner)
    assert [t.state for t in tuner.oracle.logical_trials()] == ["running"]


def test_another_space_is_an_error_before_any_trial(tmp_path):
    search(make_tuner(tmp_path))

    def build(hp):
        hp.Int("more", 1, 3)
        return build_model(hp)

    tuner = make_tuner(tmp_path, build, max_trials=3)
    with pytest.raises(SearchMismatchError, match="no hyperparameter 'more'"):
        search(tuner)
    assert len(tuner.oracle.study.trials) == 2


@pytest.mark.slow
def test_a_larger_search_continues(tmp_path):
    search(make_tuner(tmp_path, max_trials=1))
    tuner = search(make_tuner(tmp_path, max_trials=2))
    whole = search(make_tuner(tmp_path / "whole", max_trials=2))
    assert [t.score for t in tuner.oracle.logical_trials()] == [
        t.score for t in whole.oracle.logical_trials()
    ]


def test_a_database_that_goes_away_is_not_the_trials_fault(tmp_path):
    tuner = make_tuner(tmp_path)

    def gone(*args):
        raise optuna.exceptions.StorageInternalError("gone")

    tuner.oracle.study  # noqa: B018
    tuner.oracle._opened.storage.set_trial_intermediate_value = gone
    with pytest.raises(StorageError, match="gone"):
        search(tuner)
    resumed = search(make_tuner(tmp_path))
    trials = resumed.oracle.logical_trials()
    assert [(t.state, t.attempts) for t in trials] == [
        ("completed", 2),
        ("completed", 1),
    ]


# Interruptions.


@pytest.mark.slow
def test_ctrl_c_puts_the_trial_back_and_a_resume_is_as_if_nothing_was(
    tmp_path,
):
    class PressesCtrlC(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            os.kill(os.getpid(), signal.SIGINT)

    def press(model, kwargs):
        kwargs["callbacks"].append(PressesCtrlC())

    calm = search(make_tuner(tmp_path / "calm", max_trials=3))
    folder = tmp_path / "interrupted"
    kwargs = dict(max_trials=3, max_retries=0)
    tuner = make_tuner(folder, fail_at(1, press), **kwargs)
    with pytest.raises(KeyboardInterrupt):
        search(tuner)
    done, interrupted = tuner.oracle.logical_trials()
    assert (done.state, interrupted.state) == ("completed", "running")
    resumed = search(make_tuner(folder, **kwargs))
    trials = resumed.oracle.logical_trials()
    assert [t.attempts for t in trials] == [1, 2, 1]
    assert trials[1].trial_id == "0001-retry1"
    for ours, undisturbed in zip(
        trials, calm.oracle.logical_trials(), strict=True
    ):
        assert ours.score == undisturbed.score
        assert ours.hyperparameters == undisturbed.hyperparameters
        assert ours.seed == undisturbed.seed


class _EndsInVain(OptunaTuner):
    """Fails once, when a trial has ended but is not recorded yet."""

    error: BaseException | None = None

    def on_trial_end(self, trial):
        error, self.error = self.error, None
        if error is not None:
            raise error
        super().on_trial_end(trial)


@pytest.mark.slow
@pytest.mark.parametrize("error", [StorageError("gone"), KeyboardInterrupt()])
def test_a_trial_that_cannot_be_recorded_is_put_back(tmp_path, error):
    def make():
        return make_tuner(
            tmp_path, kind=_EndsInVain, max_trials=1, max_retries=0
        )

    tuner = make()
    tuner.error = error
    with pytest.raises(type(error)):
        search(tuner)
    # This very process goes on, as a notebook does, and at once.
    trial = make().oracle.create_trial("x")
    assert trial.trial_id == "0000-retry1"


def test_an_interrupt_after_the_record_leaves_the_result_alone(tmp_path):
    class Interrupted(OptunaTuner):
        def on_trial_end(self, trial):
            super().on_trial_end(trial)
            raise KeyboardInterrupt

    tuner = make_tuner(tmp_path, kind=Interrupted, max_trials=1)
    with pytest.raises(KeyboardInterrupt):
        search(tuner)
    (trial,) = tuner.oracle.logical_trials()
    assert (trial.state, trial.attempts) == ("completed", 1)


@pytest.mark.slow
def test_a_slow_but_living_worker_gives_up_and_goes_on(tmp_path):
    other = make_tuner(tmp_path)

    class LosesItsAttempt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            storage = other.oracle.study._storage
            (attempt,) = other.oracle.study.get_trials(
                states=(optuna.trial.TrialState.RUNNING,)
            )
            storage.set_trial_state_values(
                attempt._trial_id, optuna.trial.TrialState.FAIL
            )

    def lose(model, kwargs):
        kwargs["callbacks"].insert(0, LosesItsAttempt())

    tuner = search(make_tuner(tmp_path, fail_at(0, lose)))
    trials = tuner.oracle.logical_trials()
    assert [(t.state, t.attempts) for t in trials] == [
        ("completed", 2),
        ("completed", 1),
    ]
    # Each attempt has a folder of its own.
    names = ("0000", "0000-retry1", "0001")
    folders = {tuner.trial_folder(name) for name in names}
    assert len(folders) == 3 and all(any(f.iterdir()) for f in folders)
    completed = [
        t
        for t in tuner.oracle.study.trials
        if t.state == optuna.trial.TrialState.COMPLETE
    ]
    assert len(completed) == 2


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.weights.h5"
    path.write_text("old")

    def half(temporary):
        temporary.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _atomic_files.write(path, half)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.weights.h5"]


# Arguments.


@pytest.mark.parametrize(
    "kwargs, error, said",
    [
        ({"oracle": "tpe"}, TypeError, "`oracle` must be an OptunaOracle"),
        ({"overwrite": True}, ValueError, "`overwrite` must be False"),
        ({"callbacks_factory": [1]}, TypeError, "`callbacks_factory` must be"),
        ({"executions_per_trial": 0}, ValueError, "`executions_per_trial`"),
    ],
)
def test_bad_arguments_are_named(tmp_path, kwargs, error, said):
    kwargs = {
        "oracle": OptunaOracle("val_loss"),
        "directory": tmp_path,
        **kwargs,
    }
    with pytest.raises(error) as raised:
        OptunaTuner(build_model, **kwargs)
    assert said in str(raised.value)
