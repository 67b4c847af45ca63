"""Which entry of a saved state belongs to which variable."""

from collections.abc import Sequence

# Keras lets the trainable variables change without a `compile`.
WAY_OUT = (
    "If layers were frozen, unfrozen or quantized, or given LoRA, after "
    "`compile`, the saved state is of the variables from before. Load the "
    "model with `keras.models.load_model(path, compile=False)` and compile "
    "it, which starts with fresh optimizer state; or compile the model again "
    "before it is saved."
)


def match(
    saved_paths: Sequence[str],
    saved_shapes: Sequence[Sequence[int]],
    paths: Sequence[str],
    shapes: Sequence[Sequence[int]],
) -> list[int]:
    """Finds for each variable the saved index that belongs to it.

    By path, where all paths match uniquely; otherwise by build order (paths
    change when a Sequential model is reloaded).

    Raises:
        ValueError: If the numbers of variables or the shapes differ.
    """
    by_path = (
        len(set(saved_paths)) == len(saved_paths)
        and len(set(paths)) == len(paths)
        and set(saved_paths) == set(paths)
    )
    if by_path:
        order = [saved_paths.index(path) for path in paths]
    elif len(saved_paths) == len(paths):
        order = list(range(len(paths)))
    else:
        missing = [path for path in paths if path not in saved_paths]
        surplus = [path for path in saved_paths if path not in paths]
        raise ValueError(
            "The saved optimizer state does not fit the model: it is of "
            f"{len(saved_paths)} variables, and the optimizer updates "
            f"{len(paths)}. Not in the saved state: {missing or 'none'}. Only "
            f"in the saved state: {surplus or 'none'}. {WAY_OUT}"
        )
    wrong = [
        f"{paths[i]} has shape {tuple(shapes[i])}, saved as {saved_paths[j]} "
        f"with shape {tuple(saved_shapes[j])}"
        for i, j in enumerate(order)
        if tuple(shapes[i]) != tuple(saved_shapes[j])
    ]
    if wrong:
        raise ValueError(
            "The saved optimizer state does not fit the model (variables were "
            f"matched by {'path' if by_path else 'build order'}): "
            f"{'; '.join(wrong)}. {WAY_OUT}"
        )
    return order
