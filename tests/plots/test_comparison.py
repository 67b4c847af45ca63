"""Several runs in one figure."""

import numpy as np
import pytest

from keras_adamax import plots
from tests.plots.synthetic import SMALL, as_records, bert_paths, make_rows
from tests.plots.test_figures import lines_of, map_of, panel, values_of

BERT = bert_paths()


def test_each_run_has_its_lines_and_maps():
    runs = {
        "short": as_records(make_rows(SMALL, epochs=2)),
        "long": as_records(make_rows(SMALL, epochs=4, seed=1)),
    }
    figure = plots.plot_comparison(runs, title="both")
    lines = lines_of(figure)
    for name, records in runs.items():
        for quantity in ("loss", "val_loss", "clip_rate", "weight_delta_ratio"):
            steps, values = values_of(records, quantity)
            line = lines[f"{name}:{quantity}::run:0"]
            np.testing.assert_array_equal(line.get_xdata(), steps)
            np.testing.assert_array_equal(line.get_ydata(), values)
        for what in ("Clip rate", "Weight change ratio"):
            panel(figure, f"{what} of each variable: {name}")
    assert {ax.get_xlim() for ax in figure.axes} == {(0, 200)}
    norms = [
        map_of(panel(figure, f"Weight change ratio of each variable: {name}"))
        for name in runs
    ]
    assert norms[0].norm.vmin == norms[1].norm.vmin
    assert norms[0].norm.vmax == norms[1].norm.vmax
    # The shorter one has no data in the end.
    mesh = map_of(panel(figure, "Clip rate of each variable: short"))
    assert mesh.get_array().mask[:, -1].all()
    names = [
        text.get_text() for text in figure.axes[0].get_legend().get_texts()
    ]
    assert names == ["short", "long"]


def test_large_models_are_grouped_and_outliers_named():
    rows = make_rows(BERT, epochs=2)
    bad = [
        (*row[:6], 0.8)
        if (row[3], row[4], row[5]) == (90, BERT[77], "clip_rate")
        else row
        for row in rows
    ]
    runs = {"good": as_records(rows), "bad": as_records(bad)}
    figure = plots.plot_comparison(runs)
    panel(figure, "Clip rate by block: good")
    ax = panel(figure, "Clip rate: variables that stand out in bad")
    assert any("0.8 at step 90" in text.get_text() for text in ax.texts)
    figure = plots.plot_comparison(runs, group_by="kind", variables="layer_3/")
    ax = panel(figure, "Clip rate by kind: bad")
    assert len(ax.get_yticklabels()) == 4


@pytest.mark.parametrize(
    "quantities", [("loss",), ("clip_rate",), ("weight_delta",), ()]
)
def test_what_was_not_recorded_is_left_out(quantities):
    records = as_records(
        make_rows(epochs=1, quantities=quantities)
        or [(0, 0, 1, 1, "", "accuracy", 0.5)]
    )
    other = as_records(make_rows(epochs=1))
    plots.plot_comparison({"a": records, "b": other}).draw_without_rendering()
    figure = plots.plot_comparison({"a": records, "b": records})
    titles = [ax.get_title("left") for ax in figure.axes]
    assert ("Loss" in titles) == (quantities == ("loss",))


def test_unknown_quantities_are_compared():
    rows = make_rows(quantities=("clip_rate",))
    new = [(*row[:5], "gradient_norm", row[6]) for row in rows]
    runs = {"a": as_records(rows + new), "b": as_records(rows)}
    figure = plots.plot_comparison(runs)
    panel(figure, "Gradient norm of all weights")
    panel(figure, "Gradient norm of each variable: a")


@pytest.mark.parametrize("runs", [{}, {"a": "run.csv"}, ["a.csv", "b.csv"]])
def test_wrong_runs(runs):
    with pytest.raises(ValueError, match="two to six names"):
        plots.plot_comparison(runs)
