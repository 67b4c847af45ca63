"""What a release finds of a search that an earlier one has begun."""

import shutil

import pytest

from keras_adamax_tuning import SearchMismatchError, SearchResult
from tests.tuning import begun_search


@pytest.fixture
def folder(tmp_path):
    # A place of its own: a database has other files beside it while in use.
    return shutil.copytree(begun_search.FOLDER, tmp_path / "begun_search")


def test_is_read_as_it_was_left(folder):
    result = SearchResult.load(folder)
    assert [trial.state for trial in result.trials] == [
        "completed",
        "completed",
        "running",
    ]
    best = result.best_trial
    assert best.trial_id == "0001"
    assert best.score == pytest.approx(0.236513, rel=1e-4)
    optimizer = result.load_best_optimizer()
    assert float(optimizer.learning_rate) == pytest.approx(0.0335593, rel=1e-4)
    x, y = begun_search.load_data()
    assert result.load_best_model().predict(x, verbose=0).shape == y.shape


@pytest.mark.slow
def test_goes_on_where_it_was_killed(folder):
    before = SearchResult.load(folder)
    result = begun_search.search(folder, max_trials=4)
    ended = begun_search.ENDED
    assert result.trials[:ended] == before.trials[:ended]
    assert [
        (trial.number, trial.state, trial.attempts)
        for trial in result.trials[ended:]
    ] == [(2, "completed", 2), (3, "completed", 1)]
    # What the killed attempt was to try is tried.
    assert (
        result.trials[ended].hyperparameters
        == before.trials[ended].hyperparameters
    )
    assert result.best_trial == before.best_trial
    assert result.load_best_model().count_params() > 0


def test_is_still_that_search_alone(folder):
    with pytest.raises(SearchMismatchError, match="batch_size"):
        begun_search.search(folder, max_trials=4, batch_size=7)
