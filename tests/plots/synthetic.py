"""Synthetic records: what the callbacks write, without training."""

import csv
from typing import Any

import numpy as np

COLUMNS = ("run", "epoch", "batch", "step", "variable", "quantity", "value")
SMALL = (
    "sequential/lstm/lstm_cell/kernel",
    "sequential/lstm/lstm_cell/recurrent_kernel",
    "sequential/lstm/lstm_cell/bias",
    "sequential/dense/kernel",
    "sequential/dense/bias",
)


def large_paths(count=200):
    """Paths of an encoder of `count` variables, deep and long."""
    paths = ["text_classifier/token_and_position_embedding/embeddings"]
    block = 0
    while True:
        layer = f"text_classifier/transformer_encoder_{block}"
        for part in ("query", "key", "value", "attention_output"):
            where = f"{layer}/multi_head_self_attention/{part}"
            paths += [f"{where}/kernel", f"{where}/bias"]
        for part in ("feedforward_intermediate_dense", "feedforward_output"):
            paths += [f"{layer}/{part}/kernel", f"{layer}/{part}/bias"]
        for part in ("attention_layer_norm", "feedforward_layer_norm"):
            paths += [f"{layer}/{part}/gamma", f"{layer}/{part}/beta"]
        block += 1
        if len(paths) > count:
            return paths[:count]


def bert_paths():
    """Paths of the 201 variables of KerasHub's BERT with a classifier."""
    paths = [
        *(f"{name}_embedding/embeddings" for name in ("token", "position")),
        "segment_embedding/embeddings",
        *(f"embeddings_layer_norm/{kind}" for kind in ("gamma", "beta")),
    ]
    attention = ("query", "key", "value", "attention_output")
    for block in range(12):
        layer = f"transformer_layer_{block}"
        for part, kinds in (
            *((f"self_attention_layer/{name}", "kb") for name in attention),
            ("self_attention_layer_norm", "gb"),
            ("feedforward_intermediate_dense", "kb"),
            ("feedforward_output_dense", "kb"),
            ("feedforward_layer_norm", "gb"),
        ):
            names = ("kernel", "bias") if kinds == "kb" else ("gamma", "beta")
            paths += [f"{layer}/{part}/{name}" for name in names]
    for part in ("pooled_dense", "logits"):
        paths += [f"{part}/kernel", f"{part}/bias"]
    return paths


def flat_paths(count=200):
    """Paths of many layers without a hierarchy."""
    return [
        f"sequential/dense_{i // 2}/{('kernel', 'bias')[i % 2]}"
        for i in range(count)
    ]


def make_rows(
    variables=SMALL,
    epochs=4,
    batches=50,
    every=10,
    runs=1,
    frozen=(),
    nan=(),
    quantities=("clip_rate", "weight_delta", "weight_delta_ratio", "loss"),
    restart=False,
    seed=0,
):
    """Rows as the two loggers interleave them in one file.

    The clip rate is near 1 for 40 steps and then 0.02 (the warm-up); `every`
    is a number of batches, or None for a record an epoch.
    """
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-1, 1, len(variables))
    rows = []
    step = 0
    for run in range(runs):
        if restart:
            step = 0
        for epoch in range(epochs):
            for batch in range(1, batches + 1):
                step += 1
                last = batch == batches
                if not (last or (every and batch % every == 0)):
                    continue
                head = (run, epoch, batch, step)
                near = np.clip((55 - step) / 15, 0, 1)
                wave = rng.lognormal(0, 0.5, len(variables))
                rate = np.minimum(near + 0.02 * wave, 1)
                ratio = 3e-3 * scale * wave / np.sqrt(1 + step / 40)
                norm = 1 + 5 * scale
                for row, variable in enumerate(variables):
                    values = {
                        "clip_rate": rate[row],
                        "weight_delta": ratio[row] * norm[row],
                        "weight_delta_ratio": ratio[row],
                    }
                    if variable in frozen:
                        values["weight_delta"] = 0.0
                        values["weight_delta_ratio"] = 0.0
                    if variable in nan:
                        values["clip_rate"] = np.nan
                        if run or epoch >= epochs // 2:
                            values["weight_delta"] = np.nan
                            values["weight_delta_ratio"] = np.nan
                    rows += [
                        (*head, variable, quantity, value)
                        for quantity, value in values.items()
                        if quantity in quantities
                    ]
                total = {
                    "clip_rate": rate.mean(),
                    "weight_delta": np.linalg.norm(ratio * norm),
                    "weight_delta_ratio": np.median(ratio),
                }
                if last:
                    loss = 2.3 * np.exp(-step / 120) + 0.05
                    total["loss"] = loss + 0.02 * rng.random()
                    total["val_loss"] = loss * 1.2 + 0.05 * rng.random()
                rows += [
                    (*head, "", quantity, value)
                    for quantity, value in total.items()
                    if quantity.removeprefix("val_") in quantities
                ]
    return rows


def as_records(rows) -> dict[str, Any]:
    columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    dtypes = dict.fromkeys(COLUMNS, np.int64)
    dtypes |= {"variable": np.str_, "quantity": np.str_, "value": np.float64}
    return {
        name: np.array(column, dtype=dtypes[name])
        for name, column in columns.items()
    }


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return path
