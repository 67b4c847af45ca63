"""What every test starts from."""

import keras
import pytest


@pytest.fixture(autouse=True)
def fresh_keras():
    """Names of layers count from the beginning, whatever ran before."""
    keras.utils.clear_session(free_memory=False)
