"""Several processes that train one model: the first of them writes."""

from keras_adamax.callbacks import _devices


def is_first() -> bool:
    """Whether this process writes what the others would write as well."""
    return _devices.load().process_index() == 0


def gather(number: int = 0) -> list[int]:
    """The numbers of all processes, once all have come here.

    Args:
        number: That of this process.
    """
    return _devices.load().gather(number)
