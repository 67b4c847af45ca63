"""Which batch, which layer, how large: what the records of a run say.

Trains a small network on scikit-learn's digits. Batch 60 is garbage, and in
batch 120 the gradient of one layer is a thousand times too large. Then it finds
both, from the recorded file alone:

    KERAS_BACKEND=jax python examples/what_exploded.py

It answers the same for a run of your own, of an optimizer with
`track_gradient_norms=True` and a `ClipRateLogger` with a `filename` and
`update_freq=1` (with a larger number, it names the last of so many batches):

    python examples/what_exploded.py --records run.csv
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

# So many times the usual norm is an explosion.
EXPLOSION = 20
BATCH_SIZE = 32
GARBAGE, EXPLODING = 60, 120


def train(path: Path) -> None:
    """Trains the network, and records to a file."""
    import keras
    from keras import ops
    from sklearn.datasets import load_digits

    import keras_adamax

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(3 * 1600) % 1600
    images = images[order].astype("float32") / 16.0
    labels = labels[order]
    factors = np.ones((len(images), 1), "float32")

    def rows_of(batch: int) -> slice:
        return slice(BATCH_SIZE * (batch - 1), BATCH_SIZE * batch)

    images[rows_of(GARBAGE)] *= 1000
    labels[rows_of(GARBAGE)] = 3
    factors[rows_of(EXPLODING)] = 1000

    class ScaledGradient(keras.layers.Layer):
        """Gives what it gets, and makes the gradient larger by a factor."""

        def call(self, inputs):
            x, factor = inputs
            return factor * x + ops.stop_gradient(x - factor * x)

    keras.utils.set_random_seed(0)
    image, factor = keras.Input((64,)), keras.Input((1,))
    x = keras.layers.Dense(64, name="hidden")(image)
    x = ScaledGradient()([x, factor])
    x = keras.layers.Dense(64, name="middle")(keras.layers.ReLU()(x))
    x = keras.layers.Dense(10, name="digit")(keras.layers.ReLU()(x))
    model = keras.Model([image, factor], x)
    model.compile(
        keras_adamax.AdamaxClipped(0.005, track_gradient_norms=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    logger = keras_adamax.ClipRateLogger(update_freq=1, filename=path)
    model.fit(
        [images, factors],
        labels,
        batch_size=BATCH_SIZE,
        shuffle=False,
        callbacks=[logger],
        verbose=0,
    )


def describe(records: Mapping[str, np.ndarray]) -> list[str]:
    """A paragraph for each record in which a gradient was too large."""
    of = {
        quantity: records["quantity"] == quantity
        for quantity in ("gradient_norm", "clipped_share", "loss")
    }
    if not of["gradient_norm"].any():
        raise SystemExit(
            "There are no gradient norms in these records. Make the optimizer "
            "with track_gradient_norms=True."
        )
    times = np.stack([records[name] for name in ("run", "epoch", "batch")], 1)
    variables = sorted({*records["variable"][of["gradient_norm"]]} - {""})
    usual = {
        name: np.nanmedian(
            records["value"][
                of["gradient_norm"] & (records["variable"] == name)
            ]
        )
        for name in variables
    }

    def value_at(time: np.ndarray, quantity: str, variable: str = "") -> float:
        row = of[quantity] & (records["variable"] == variable)
        found = records["value"][row & (times == time).all(axis=1)]
        return float(found[0]) if len(found) else np.nan

    moments = np.unique(times[of["gradient_norm"]], axis=0)
    losses = [value_at(time, "loss") for time in moments]
    texts = []
    for i, time in enumerate(moments):
        norms = {name: value_at(time, "gradient_norm", name) for name in usual}
        exploded = [n for n in norms if norms[n] > EXPLOSION * usual[n] > 0]
        if not exploded:
            continue
        _, epoch, batch = time
        worst = max(exploded, key=lambda name: norms[name] / usual[name])
        where = f"{', '.join(exploded)}, and nothing else"
        if len(exploded) >= len(usual) / 2:
            where = f"{len(exploded)} of {len(usual)} variables: see the batch"
        loss = [f"{x:.3g}" for x in losses[max(i - 1, 0) : i + 2]]
        texts.append(
            f"Epoch {epoch + 1}, batch {batch}\n"
            f"  where:    {where}\n"
            f"  how much: {worst}: {norms[worst]:.3g}, "
            f"usually {usual[worst]:.3g}\n"
            f"  clipping: took away "
            f"{value_at(time, 'clipped_share', worst):.2%} of its square\n"
            f"  loss:     {' -> '.join(loss)} (before, then, after)"
        )
    return texts


def main() -> None:
    """Trains, unless there are records, and says what exploded."""
    parser = argparse.ArgumentParser(
        description="Says which batch and which layer exploded in a run."
    )
    parser.add_argument(
        "--records", type=Path, help="CSV or .npz file of a run of your own"
    )
    path = parser.parse_args().records
    if path is None:
        path = Path("what_exploded.csv")
        path.unlink(missing_ok=True)
        train(path)
    from keras_adamax import plots

    texts = describe(plots.read_records(path))
    print("\n".join(texts) or "No gradient exploded.")


if __name__ == "__main__":
    main()
