"""What was there before a search is no garbage of it."""

import gc

import pytest

from keras_adamax_tuning.running import work


@pytest.fixture(autouse=True)
def thawed():
    # The fixture of all tests of searches has frozen it.
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_the_collector_leaves_alone_what_was_there():
    before = len(gc.get_objects())
    with work.what_is_there_is_no_garbage():
        assert gc.get_freeze_count() > 0.9 * before
        assert len(gc.get_objects()) < 0.1 * before
    assert gc.get_freeze_count() == 0
    assert len(gc.get_objects()) > 0.9 * before


def test_garbage_of_the_block_is_collected():
    collected = []

    class Cycle:
        def __init__(self):
            self.itself = self

        def __del__(self):
            collected.append(True)

    with work.what_is_there_is_no_garbage():
        Cycle()
        gc.collect()
        assert collected


def test_the_users_own_freeze_stays():
    gc.freeze()
    with work.what_is_there_is_no_garbage():
        pass
    assert gc.get_freeze_count() > 0


def test_an_error_thaws():
    with pytest.raises(KeyError), work.what_is_there_is_no_garbage():
        raise KeyError
    assert gc.get_freeze_count() == 0
