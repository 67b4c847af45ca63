"""JAX keeps what XLA compiled, for other models and processes.

Each trial of a search makes a model of its own, so each compiles the same
program again: most of the time of a short trial. JAX can keep compiled
programs in a folder, where other processes find them, too.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

# JAX's settings: where compiled programs are kept, and after how many seconds
# of compilation.
_FOLDER = "jax_compilation_cache_dir"
_SHORTEST = "jax_persistent_cache_min_compile_time_secs"


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """Keeps compiled programs until the end of the block.

    Also for processes that are started in it. Where the user has JAX keep them
    already, nothing is changed.
    """
    before = {name: getattr(jax.config, name) for name in (_FOLDER, _SHORTEST)}
    if before[_FOLDER] is not None:
        yield
        return
    # Not in the search's folder: what was compiled for the processor of one
    # machine may not run on another.
    with tempfile.TemporaryDirectory(
        prefix="keras_adamax_", ignore_cleanup_errors=True
    ) as folder:
        settings: dict[str, Any] = {_FOLDER: folder, _SHORTEST: 0.0}
        environment = dict(os.environ)
        os.environ |= {name.upper(): str(v) for name, v in settings.items()}
        _configure(settings)
        try:
            yield
        finally:
            _configure(before)
            for name in map(str.upper, settings):
                if name in environment:
                    os.environ[name] = environment[name]
                else:
                    del os.environ[name]


def _configure(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    # JAX looks at the settings once, at its first compilation.
    compilation_cache.reset_cache()
