"""The state of a `keras.optimizers.Adamax`, which says nothing of itself."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_adamax.state.matching import WAY_OUT


class _AdamaxLayout(NamedTuple):
    """Which variables a `keras.optimizers.Adamax` has."""

    has_learning_rate: bool
    use_ema: bool
    accumulates: bool

    def __str__(self) -> str:
        kind = "a number" if self.has_learning_rate else "a schedule"
        return (
            f"learning rate {kind}, use_ema={self.use_ema}, gradient "
            f"accumulation {'on' if self.accumulates else 'off'}"
        )

    def positions(
        self, shapes: Sequence[Sequence[int]], has_state: Sequence[bool]
    ) -> list[tuple[str, int | None, tuple[int, ...]]]:
        """Role, index of the model's variable and shape, in order."""
        result: list[tuple[str, int | None, tuple[int, ...]]] = [
            ("iterations", None, ())
        ]
        if self.has_learning_rate:
            result.append(("learning_rate", None, ()))
        with_state = [i for i, present in enumerate(has_state) if present]
        if self.use_ema:
            result += [("average", i, tuple(shapes[i])) for i in with_state]
        if self.accumulates:
            result += [
                ("gradient_accumulator", i, tuple(shape))
                for i, shape in enumerate(shapes)
            ]
        for i in with_state:
            result.append(("momentum", i, tuple(shapes[i])))
            result.append(("norm", i, tuple(shapes[i])))
        return result

    def fits(
        self,
        arrays: Mapping[str, np.ndarray],
        shapes: Sequence[Sequence[int]],
        has_state: Sequence[bool],
    ) -> bool:
        positions = self.positions(shapes, has_state)
        return len(arrays) == len(positions) and all(
            str(i) in arrays and tuple(arrays[str(i)].shape) == shape
            for i, (_, _, shape) in enumerate(positions)
        )


def interpret(
    arrays: Mapping[str, np.ndarray],
    paths: Sequence[str],
    shapes: Sequence[Sequence[int]],
    has_state: Sequence[bool],
    *,
    use_ema: bool,
    gradient_accumulation_steps: int | None,
) -> dict[str, Any]:
    """Finds the roles in the positional state of a `keras.optimizers.Adamax`.

    Args:
        arrays: Position to array.
        paths: Paths of our variables.
        shapes: Their shapes.
        has_state: Whether Keras keeps moments for the variable.
        use_ema: Setting of this optimizer.
        gradient_accumulation_steps: Setting of this optimizer.

    Returns:
        Role to array, or to a list with an array (or `None`) a variable.

    Raises:
        ValueError: If no layout fits, or more than one does.
    """
    accumulates = gradient_accumulation_steps is not None
    found = [
        layout
        for layout in itertools.starmap(
            _AdamaxLayout, itertools.product((True, False), repeat=3)
        )
        if layout.fits(arrays, shapes, has_state)
    ]
    hint = WAY_OUT
    if not found:
        raise ValueError(
            "The saved optimizer state does not fit: it has "
            f"{len(arrays)} numbered entries of shapes "
            f"{[tuple(arrays[k].shape) for k in sorted(arrays, key=int)]}, "
            "and a keras.optimizers.Adamax would have other ones for the "
            f"variables {list(paths)} of shapes "
            f"{[tuple(shape) for shape in shapes]}. {hint}"
        )
    # Averages and accumulators look alike: it is the settings of this
    # optimizer that say which they are.
    chosen = [
        layout
        for layout in found
        if (layout.use_ema, layout.accumulates) == (use_ema, accumulates)
    ]
    if not chosen:
        raise ValueError(
            "The saved state of a keras.optimizers.Adamax does not fit the "
            "settings of this optimizer. Saved: "
            f"{', or '.join(map(str, found))}. Here: use_ema={use_ema}, "
            f"gradient accumulation {'on' if accumulates else 'off'}. Make the "
            "optimizer with the same settings."
        )
    if len({layout.has_learning_rate for layout in found}) > 1:
        raise ValueError(
            "The saved optimizer state is ambiguous: its numbered entries fit "
            f"a keras.optimizers.Adamax in {len(found)} ways "
            f"({'; '.join(map(str, found))}). {hint}"
        )
    result: dict[str, Any] = {}
    for i, (role, index, _) in enumerate(
        chosen[0].positions(shapes, has_state)
    ):
        if index is None:
            result[role] = arrays[str(i)]
        else:
            result.setdefault(role, [None] * len(paths))[index] = arrays[str(i)]
    _check_adamax(result, use_ema, gradient_accumulation_steps, hint)
    return result


def _check_adamax(
    roles: Mapping[str, Any], use_ema: bool, steps: int | None, hint: str
) -> None:
    """Refuses averages that are accumulators, and the other way about."""

    def is_zero(role: str) -> bool:
        return not any(np.any(a) for a in roles.get(role, ()) if a is not None)

    iterations = int(roles["iterations"])
    if (
        steps is not None
        and iterations % steps == 0
        and not is_zero("gradient_accumulator")
    ):
        raise ValueError(
            "The saved state of a keras.optimizers.Adamax does not fit the "
            f"settings of this optimizer. With gradient_accumulation_steps="
            f"{steps} the accumulators are 0 after {iterations} calls, and in "
            "the saved state they are not: it was saved with another number, "
            f"or with use_ema=True and without accumulation. {hint}"
        )
    if use_ema and is_zero("average") and not is_zero("norm"):
        raise ValueError(
            "The saved state of a keras.optimizers.Adamax does not fit the "
            "settings of this optimizer. With use_ema=True there are averages "
            "of the weights, and in the saved state they are all 0: it was "
            f"saved with use_ema=False and with gradient accumulation. {hint}"
        )
