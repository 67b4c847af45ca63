"""The private and undocumented parts of KerasTuner and Optuna that we use.

Each test fails loudly when a new release moves such a part, and names the
file of ours that has to follow. What the other tests show anyway is not
repeated: these say which part it was.
"""

import inspect

import keras_tuner
import optuna
import pytest
import sqlalchemy
from keras_tuner.engine import hyperparameters as kinds
from keras_tuner.engine import trial as keras_tuner_trial
from optuna.storages import RDBStorage
from optuna.trial import TrialState


def parameters_of(function) -> list[str]:
    return list(inspect.signature(function).parameters)


# KerasTuner.


def test_the_tuner_tells_the_oracle_its_folder():
    """optuna_oracle.py: where `study.db` is."""
    assert parameters_of(keras_tuner.Oracle._set_project_dir) == [
        "self",
        "directory",
        "project_name",
    ]
    assert isinstance(keras_tuner.Oracle._project_dir, property)
    source = inspect.getsource(keras_tuner.Tuner.__mro__[1].__init__)
    assert "self.oracle._set_project_dir(" in source
    # And the oracle keeps it under this name.
    oracle = keras_tuner.Oracle.__new__(keras_tuner.Oracle)
    oracle._set_project_dir("a", "b")
    assert oracle._project_name == "b"


def test_the_tuners_hooks_that_run_trial_uses():
    """tuner.py: `_execute` and `load_model`."""
    tuner = keras_tuner.Tuner
    assert parameters_of(tuner._try_build) == ["self", "hp"]
    assert parameters_of(tuner._deepcopy_callbacks) == ["self", "callbacks"]
    assert parameters_of(tuner._configure_tensorboard_dir)[:3] == [
        "self",
        "callbacks",
        "trial",
    ]
    for name in ("pre_create_trial", "on_search_begin", "on_search_end"):
        assert parameters_of(getattr(tuner, name)) == ["self"]


def test_the_oracles_methods_that_are_overridden():
    """optuna_oracle.py."""
    expected = {
        "create_trial": 1,
        "update_trial": 3,
        "end_trial": 1,
        "get_trial": 1,
        "get_best_trials": 1,
        "update_space": 1,
        "remaining_trials": 0,
        "save": 0,
        "reload": 0,
        "score_trial": 1,
        "_check_objective_found": 1,
    }
    for name, count in expected.items():
        method = getattr(keras_tuner.Oracle, name)
        method = inspect.getclosurevars(method).nonlocals.get("func", method)
        assert len(parameters_of(method)) == count + 1, name


def test_a_state_file_is_read_only_if_the_tuner_wrote_one():
    """tuner.py: as `save` writes none, each start explores the space."""
    source = inspect.getsource(keras_tuner.Tuner.__mro__[1].__init__)
    assert "backend.io.exists(self._get_tuner_fname())" in source
    assert "self._populate_initial_space()" in source


def test_a_seed_of_0_still_has_to_be_restored():
    """optuna_oracle.py: when it is kept, a line of `__init__` can go."""
    assert keras_tuner.Oracle(objective="val_loss", seed=0).seed != 0


def test_what_a_hyperparameter_has():
    """study/distributions.py."""
    number = kinds.Float("x", 1, 8, step=2, sampling="log")
    assert (number.min_value, number.max_value, number.step) == (1, 8, 2)
    assert number.sampling == "log"
    hp = keras_tuner.HyperParameters()
    hp.Choice("kind", ["a", "b"])
    hp.Int("n", 1, 3, parent_name="kind", parent_values=["b"])
    (condition,) = hp.space[1].conditions
    assert (condition.name, condition.values) == ("kind", ["b"])
    assert not condition.is_active({"kind": "a"})
    assert condition.is_active({"kind": "b"})


def test_the_states_of_a_trial():
    """optuna_oracle.py, tuner.py."""
    status = keras_tuner_trial.TrialStatus
    assert {
        status.RUNNING,
        status.IDLE,
        status.STOPPED,
        status.COMPLETED,
        status.FAILED,
        status.INVALID,
    } == {"RUNNING", "IDLE", "STOPPED", "COMPLETED", "FAILED", "INVALID"}


# Optuna.


@pytest.fixture
def storage(tmp_path):
    storage = RDBStorage(f"sqlite:///{tmp_path}/study.db")
    yield storage
    storage.remove_session()
    storage.engine.dispose()


def test_beats_are_recorded_by_hand_and_asked_for(storage):
    """study/heartbeats.py."""
    storage.heartbeat_interval, storage.grace_period = 1, 2
    study = optuna.create_study(storage=storage)
    trial_id = storage.create_new_trial(study._study_id)
    assert storage._get_stale_trial_ids(study._study_id) == []  # no beat yet
    storage.record_heartbeat(trial_id)
    with storage.engine.begin() as connection:
        connection.execute(
            sqlalchemy.text(
                "UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'"
            )
        )
    assert storage._get_stale_trial_ids(study._study_id) == [trial_id]
    assert storage.get_heartbeat_interval() == 1


def test_asking_and_telling_still_does_not_beat(storage):
    """study/heartbeats.py: when it does, the file can go."""
    storage.heartbeat_interval = 1
    study = optuna.create_study(storage=storage)
    with pytest.warns(UserWarning, match="Heartbeat"):
        study.ask()
    with storage.engine.begin() as connection:
        count = connection.execute(
            sqlalchemy.text("SELECT count(*) FROM trial_heartbeats")
        ).scalar()
    assert count == 0


def test_ids_and_the_storage_of_a_study(storage):
    """study/attempt_book.py and what reads a study."""
    study = optuna.create_study(storage=storage)
    assert isinstance(study._study_id, int)
    assert study._storage._backend is storage  # a cache around it
    trial = study.ask()
    assert isinstance(study.trials[0]._trial_id, int)
    assert trial._trial_id == study.trials[0]._trial_id


def test_a_trial_that_waits_can_be_taken_once(storage):
    """study/claims.py: `take`, and that finished trials stay as they are."""
    study = optuna.create_study(storage=storage)
    study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING))
    trial_id = study.trials[0]._trial_id
    assert storage.set_trial_state_values(trial_id, TrialState.RUNNING)
    assert not storage.set_trial_state_values(trial_id, TrialState.RUNNING)
    storage.set_trial_state_values(trial_id, TrialState.FAIL)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.set_trial_user_attr(trial_id, "key", "value")
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.set_trial_intermediate_value(trial_id, 0, 1.0)


def test_a_database_has_a_row_with_its_version(storage):
    """study/database.py: `_check_writable` writes it as it is."""
    with storage.engine.begin() as connection:
        rows = connection.execute(
            sqlalchemy.text("SELECT library_version FROM version_info")
        ).all()
    assert rows == [(optuna.__version__,)]


def test_a_trial_asks_and_tells_what_its_study_has(storage):
    """study/proposals.py: `Trial(study, id)`, and `_suggest` as `ask` does."""
    assert parameters_of(optuna.trial.Trial) == ["study", "trial_id"]
    study = optuna.create_study(
        storage=storage, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    trial_id = study._storage.create_new_trial(study._study_id)
    asked = optuna.trial.Trial(study, trial_id)
    value = asked._suggest("x", optuna.distributions.IntDistribution(1, 3))
    assert study.trials[0].params == {"x": value}
    asked.report(1.0, 0)
    assert not asked.should_prune()
    # A trial that was pruned has the value that was reported last.
    study.tell(0, state=TrialState.PRUNED)
    assert study.trials[0].values == [1.0]


def test_a_distribution_knows_whether_it_has_one_value():
    """study/distributions.py: `finite_values`."""
    assert optuna.distributions.FloatDistribution(1.0, 1.0).single()
    assert not optuna.distributions.IntDistribution(1, 2).single()


def test_where_an_enqueued_trial_has_its_values(storage):
    """study/retries.py: `add`."""
    study = optuna.create_study(storage=storage)
    study.enqueue_trial({"x": 1})
    assert study.trials[0].system_attrs["fixed_params"] == {"x": 1}
    assert study.trials[0].state == TrialState.WAITING


def test_where_keras_keeps_whether_tensorflow_is_installed():
    """base/tensorflow_guard.py."""
    from keras.src.utils.module_utils import LazyModule, tensorflow

    assert isinstance(tensorflow, LazyModule)
    other = LazyModule("no_such_module_anywhere")
    assert other._available is None
    assert other.available is False and other._available is False
