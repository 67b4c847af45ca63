"""The saved state of an `AdamaxClipped`: its format, read and written.

Keras saves an optimizer's variables by position and drops them with a warning
when their number differs. Here every entry says what it is: beside the arrays
stands a manifest (JSON, as bytes, because a store of Keras holds numbers only)
with the role, build index, variable path and shape of each.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

FORMAT_VERSION = 1
MANIFEST = "manifest"
POSITIONAL = "variable"
_SCALARS = ("iterations", "log_beta_1_product", "skipped_steps")
# Unlike moments, which Keras's `overwrite_with_gradient` variables lack.
_FOR_EVERY_VARIABLE = ("clip_counts", "clipping_exclusion")
# What can change while a state waits for its variables.
_CHANGING_SETTINGS = (
    "constructed",
    "current",
    "learning_rate_is_number",
    "learning_rate",
    "clip_rate_origin",
)
_MANIFEST_KEYS = (
    "kind",
    "roles",
    "paths",
    "shapes",
    "entries",
    *_CHANGING_SETTINGS,
    "use_ema",
    "gradient_accumulation_steps",
    "exclude_from_clipping",
    "not_decayed",
    "not_decayed_pattern",
)
# Default names of Keras's optimizers whose state could pass for Adamax's.
OTHER_OPTIMIZERS = (
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adam_w",
    "adamw",
    "ftrl",
    "lamb",
    "lion",
    "multi_optimizer",
    "muon",
    "nadam",
    "rm_sprop",
    "rmsprop",
    "schedule_free_adam_w",
    "sgd",
    "SGD",
)


@dataclasses.dataclass
class SavedState:
    """What a store held.

    Attributes:
        manifest: Everything but the arrays. `None` for the positional state
            of a `keras.optimizers.Adamax`.
        arrays: Key to array.
    """

    manifest: dict[str, Any] | None
    arrays: dict[str, np.ndarray]

    @property
    def kind(self) -> str:
        """Who wrote it, and how.

        "own": an AdamaxClipped, by role; "positional": an AdamaxClipped, of
        which only the order of the variables is known (`positional`);
        "adamax": a `keras.optimizers.Adamax`.
        """
        return "adamax" if self.manifest is None else self.manifest["kind"]

    @property
    def paths(self) -> list[str]:
        """Paths of the variables, in build order; empty if not known."""
        return [] if self.manifest is None else self.manifest["paths"]

    def scalar(self, role: str) -> np.ndarray:
        """The array of a role that there is once."""
        return self.arrays[role]

    def per_variable(self, role: str) -> list[Any]:
        """The arrays of a role in build order.

        Keras's `overwrite_with_gradient` variables have no state: `None`.
        """
        return [self.arrays.get(_key(role, i)) for i in range(len(self.paths))]

    def variables(self) -> Iterator[np.ndarray]:
        """The arrays of a positional state, in order."""
        for i in itertools.count():
            if _key(POSITIONAL, i) not in self.arrays:
                return
            yield self.arrays[_key(POSITIONAL, i)]


def _key(role: str, index: int) -> str:
    return f"{role}.{index}"


def positional(arrays: Sequence[np.ndarray]) -> SavedState:
    """A state of which only the order of the per-variable arrays is known.

    A whole-model `.h5` file holds no more.
    """
    return SavedState(
        {
            "kind": "positional",
            "roles": [],
            "paths": [],
            "shapes": [],
            "entries": [
                {
                    "key": _key(POSITIONAL, i),
                    "role": POSITIONAL,
                    "index": i,
                    "shape": list(array.shape),
                }
                for i, array in enumerate(arrays)
            ],
        },
        {_key(POSITIONAL, i): array for i, array in enumerate(arrays)},
    )


def write(
    store: Any,
    *,
    scalars: Mapping[str, np.ndarray],
    per_variable: Mapping[str, Sequence[np.ndarray | None]],
    paths: Sequence[str],
    shapes: Sequence[Sequence[int]],
    settings: Mapping[str, Any],
) -> None:
    """Writes a state to one of Keras's stores.

    Args:
        store: What Keras gives `save_own_variables`.
        scalars: Role to an array that there is once.
        per_variable: Role to an array (or `None`) a variable.
        paths: Paths of the variables, in build order.
        shapes: Shapes of the variables, in build order.
        settings: What else the manifest holds; JSON.
    """
    entries = []
    arrays = {}
    for role, values in per_variable.items():
        for i, array in enumerate(values):
            if array is None:
                continue
            arrays[_key(role, i)] = array
            entries.append(
                {
                    "key": _key(role, i),
                    "role": role,
                    "index": i,
                    "path": paths[i],
                    "shape": list(array.shape),
                }
            )
    manifest = {
        "kind": "own",
        "roles": list(per_variable),
        "paths": list(paths),
        "shapes": [list(shape) for shape in shapes],
        "entries": entries,
        **settings,
    }
    _write(store, manifest, arrays, scalars)


def rewrite(
    store: Any,
    saved: SavedState,
    scalars: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
) -> None:
    """Writes a state that was read and that no variables have got so far.

    Args:
        store: What Keras gives `save_own_variables`.
        saved: The state.
        scalars: As for `write`; newer than those in the state.
        settings: As for `write`; what it says of variables stays as it was.
    """
    if saved.manifest is None:
        for key, array in saved.arrays.items():
            store[key] = array
        return
    manifest = {**settings, **saved.manifest}
    for name in _CHANGING_SETTINGS:
        manifest[name] = settings[name]
    manifest["entries"] = [
        entry for entry in manifest["entries"] if entry["key"] not in scalars
    ]
    _write(store, manifest, saved.arrays, scalars)


def _write(
    store: Any,
    manifest: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    scalars: Mapping[str, np.ndarray],
) -> None:
    entries = [
        {"key": role, "role": role, "shape": list(array.shape)}
        for role, array in scalars.items()
    ]
    manifest = {
        **manifest,
        "format_version": FORMAT_VERSION,
        "entries": entries + manifest["entries"],
    }
    text = json.dumps(manifest).encode()
    store[MANIFEST] = np.frombuffer(text, dtype="uint8")
    for key, array in {**arrays, **scalars}.items():
        store[key] = array


def damaged(what: str) -> ValueError:
    """The error for a state that contradicts itself."""
    return ValueError(f"The saved optimizer state is damaged: {what}.")


def read(store: Any) -> SavedState | None:
    """Reads everything from a store; `None` if it is empty.

    Raises:
        ValueError: If it is of a newer format, damaged, or of another kind.
    """
    keys = list(store.keys())
    if not keys:
        return None
    arrays = {key: np.asarray(store[key]) for key in keys if key != MANIFEST}
    if MANIFEST not in keys:
        if all(key.isdigit() for key in keys):
            _refuse_other_optimizers(store)
            return SavedState(None, arrays)
        raise ValueError(
            "The saved optimizer state is of no known kind: it has neither the "
            "manifest of AdamaxClipped nor the numbered entries of Keras's "
            f"own optimizers. Received the entries: {sorted(keys)[:10]}."
        )
    return SavedState(_read_manifest(store[MANIFEST], arrays), arrays)


def _read_manifest(
    text: Any, arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    try:
        manifest = json.loads(np.asarray(text).tobytes().decode())
    except ValueError as error:
        raise damaged(f"its manifest cannot be read ({error})") from error
    if not isinstance(manifest, dict) or "format_version" not in manifest:
        raise damaged("its manifest does not say its format")
    version = manifest["format_version"]
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            "The optimizer state was saved by a newer keras_adamax: its format "
            f"version is {version}, and this one reads up to {FORMAT_VERSION}. "
            "Upgrade keras-adamax."
        )
    missing = [name for name in _MANIFEST_KEYS if name not in manifest]
    if missing:
        raise damaged(f"its manifest lacks {', '.join(missing)}")
    shapes = {e["key"]: tuple(e["shape"]) for e in manifest["entries"]}
    required = [
        _key(role, i)
        for role in _FOR_EVERY_VARIABLE
        for i in range(len(manifest["paths"]))
    ]
    missing = [
        key for key in (*_SCALARS, *required, *shapes) if key not in arrays
    ]
    if missing:
        raise damaged(f"it lacks {', '.join(missing)}")
    wrong = [
        f"{key} has shape {arrays[key].shape} and not {shape}"
        for key, shape in shapes.items()
        if arrays[key].shape != shape
    ]
    if wrong:
        raise damaged("; ".join(wrong))
    return manifest


def _refuse_other_optimizers(store: Any) -> None:
    # Adam's state has the shapes of Adamax's and another meaning. The only
    # trace of who wrote it is the name that Keras puts beside the entries;
    # its store has no public way to it.
    group = getattr(store, "_h5_entry_group", None)
    name = str(getattr(group, "attrs", {}).get("name", ""))
    kind = re.sub(r"_\d+$", "", name)
    if kind == "loss_scale_optimizer":
        raise ValueError(
            "The saved optimizer state is of a keras.optimizers."
            "LossScaleOptimizer, and here there is none. Keras adds it in "
            "`compile` under the dtype policy mixed_float16, and does not save "
            "that it did: call keras.config.set_dtype_policy('mixed_float16') "
            "before loading."
        )
    if kind in OTHER_OPTIMIZERS:
        raise ValueError(
            "The saved optimizer state is of another optimizer: it was saved "
            f"under the name {name!r}. AdamaxClipped loads its own state and "
            "that of a keras.optimizers.Adamax. To load the weights alone, "
            "do so before `compile`."
        )
