"""One program is compiled once for all trials, where a backend can do that.

Each trial of a search makes a model of its own, so each compiles the same
program again: most of the time of a short trial. JAX can keep what XLA
compiled in a folder, where other processes find it, too. TensorFlow keeps
nothing that it compiled, and PyTorch what it compiles by itself.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

import keras

# JAX's settings: where compiled programs are kept, and after how many seconds
# of compilation.
_FOLDER = "jax_compilation_cache_dir"
_SHORTEST = "jax_persistent_cache_min_compile_time_secs"


@contextlib.contextmanager
def shared(settings: dict[str, Any] | None = None) -> Iterator[Any]:
    """Keeps compiled programs until the end of the block.

    Where the user has JAX keep them already, nothing is changed.

    Args:
        settings: What the block of another process of this machine has given,
            to share its programs. Defaults to `None`, for a new folder.

    Yields:
        JAX's settings, which other processes can be given.
    """
    if keras.backend.backend() != "jax":
        yield None
        return
    import jax

    before = {name: getattr(jax.config, name) for name in (_FOLDER, _SHORTEST)}
    with contextlib.ExitStack() as stack:
        if before[_FOLDER] is not None:
            settings = before
        elif settings is None:
            # Not in the search's folder: what was compiled for the processor
            # of one machine may not run on another.
            folder = tempfile.TemporaryDirectory(
                prefix="keras_adamax_", ignore_cleanup_errors=True
            )
            settings = {_FOLDER: stack.enter_context(folder), _SHORTEST: 0.0}
        if settings != before:
            stack.callback(_configure, before)
            _configure(settings)
        yield settings


def _configure(settings: dict[str, Any]) -> None:
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    for name, value in settings.items():
        jax.config.update(name, value)
    # JAX looks at the settings once, at its first compilation.
    compilation_cache.reset_cache()
