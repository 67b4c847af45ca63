"""Filters, groups, and the variables that stand out."""

import re

import numpy as np
import pytest

from keras_adamax import plots
from keras_adamax.plots import _layouts, _rows
from keras_adamax.plots._records import load
from keras_adamax.plots._rows import Selection, blocks, kinds, standing_out
from keras_adamax.plots._tables import Clock, tabulate
from tests.plots.synthetic import (
    SMALL,
    as_records,
    bert_paths,
    flat_paths,
    large_paths,
    make_rows,
)
from tests.plots.test_figures import lines_of, map_of, panel

BERT = bert_paths()


def table_of(values, quantity="weight_delta", variables=None):
    """A table of an array: variables by records."""
    names = variables or [f"w{row}" for row in range(len(values))]
    rows = [
        (0, 0, step, step, name, quantity, value)
        for step, column in enumerate(np.transpose(values), 1)
        for name, value in zip(names, column, strict=True)
    ]
    columns = load(as_records(rows))
    return tabulate(columns, quantity, Clock.of(columns))


def noise(rows, columns):
    return 10 ** np.random.default_rng(0).normal(-2, 0.1, (rows, columns))


def test_blocks_of_a_deep_model():
    layers = [f"transformer_layer_{i}" for i in range(12)]
    expected = ["token_embedding", "position_embedding", "segment_embedding"]
    expected += ["embeddings_layer_norm", *layers, "pooled_dense", "logits"]
    assert list(dict.fromkeys(blocks(BERT))) == expected
    inside = [f"bert/backbone/{path}" for path in BERT]
    assert list(dict.fromkeys(blocks(inside))) == [
        f"bert/backbone/{name}" for name in expected
    ]
    # One folder beside the head: the level below it tells more.
    mixed = [f"backbone/{path}" for path in BERT[:-2]] + BERT[-2:]
    assert "backbone/transformer_layer_3" in blocks(mixed)


def test_blocks_of_a_flat_model_are_neighbours():
    found = blocks(flat_paths(200))
    assert len(set(found)) <= _rows.MAX_ROWS
    assert found[:7] == ["sequential/dense_0 to dense_2"] * 6 + [
        "sequential/dense_3 to dense_5"
    ]
    assert blocks([f"m/w{i}" for i in range(50)])[:3] == ["m/w0 to w1"] * 2 + [
        "m/w2 to w3"
    ]
    assert blocks(["a/x", "a/b/c"]) == ["a", "a/b"]


def test_kinds():
    assert set(kinds(BERT)) == {
        "kernel",
        "bias",
        "gamma",
        "beta",
        "embeddings",
    }


@pytest.mark.parametrize("group_by", ["block", "kind"])
def test_a_group_shows_its_largest_value(group_by):
    rows = make_rows(BERT, epochs=1, nan=BERT[:1])
    figure = plots.plot_clip_rates(as_records(rows), group_by=group_by)
    ax = panel(figure, f"Clip rate by {group_by}")
    values = map_of(ax).get_array().filled(np.nan)
    groups = blocks(BERT) if group_by == "block" else kinds(BERT)
    table = tabulate(
        load(as_records(rows)), "clip_rate", Clock.of(load(as_records(rows)))
    )
    for row, group in enumerate(dict.fromkeys(groups)):
        inside = [i for i, name in enumerate(groups) if name == group]
        if inside == [0]:
            assert np.isnan(values[row]).all()
            continue
        expected = np.nanmax(table.values[inside], axis=0)
        np.testing.assert_array_equal(values[row], expected)
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels == [name.removesuffix("/") for name in dict.fromkeys(groups)]
    assert ax.get_ylabel() == group_by


def test_few_variables_are_not_grouped_and_many_are():
    for count, title in (
        (_rows.MAX_ROWS, "Clip rate of each variable"),
        (_rows.MAX_ROWS + 1, "Clip rate by block"),
    ):
        rows = make_rows(large_paths(count), epochs=1)
        panel(plots.plot_clip_rates(as_records(rows)), title)


def explode(rows, variable, steps, factor=50):
    return [
        (*row[:6], min(row[6] * factor, 0.9))
        if row[4] == variable and row[3] in steps
        else row
        for row in rows
    ]


def test_the_variable_that_explodes_is_named_with_step_and_value():
    bad = BERT[130]
    rows = explode(make_rows(BERT), bad, {120, 130})
    figure = plots.plot_clip_rates(as_records(rows))
    ax = panel(figure, "Clip rate: variables that stand out")
    (label, *others) = [text.get_text() for text in ax.get_yticklabels()]
    head, tail = label.split("\N{HORIZONTAL ELLIPSIS}")
    assert [
        path for path in BERT if path.startswith(head) and path.endswith(tail)
    ] == [bad]
    assert len(others) == 7
    words = [text.get_text() for text in ax.texts]
    first = next(text for text in words if "at step" in text)
    assert re.match(r"0\.\d+ at step 1[23]0 \(usually 0\.0[23]\d?\)", first)
    assert {f"peak:{row}" for row in range(8)} <= lines_of(figure).keys()


def test_an_explosion_among_few_variables_is_marked():
    rows = explode(make_rows(SMALL, every=1), SMALL[1], {120})
    ax = panel(
        plots.plot_clip_rates(as_records(rows)), "Clip rate of each variable"
    )
    assert any("at step 120" in text.get_text() for text in ax.texts)
    calm = plots.plot_clip_rates(as_records(make_rows(SMALL, every=1)))
    assert not [gid for gid in lines_of(calm) if gid.startswith("peak")]


def test_the_first_that_is_nan_is_named():
    rows = [
        (*row[:6], np.nan)
        if "ratio" in row[5] and row[3] >= (100 if row[4] == BERT[9] else 120)
        else row
        for row in make_rows(BERT)
    ]
    figure = plots.plot_weight_changes(as_records(rows))
    ax = panel(figure, "Weight change ratio: variables that stand out")
    words = [t.get_text() for t in ax.texts if "since step" in t.get_text()]
    assert words[0].startswith("NaN since step 100 (usually 0.0")
    assert all("since step 120" in text for text in words[1:])


class TestStandingOut:
    def test_not_what_is_always_large(self):
        values = noise(20, 100)
        values[3] *= 1000
        values[7, 40] *= 20
        first = standing_out(table_of(values), 1, False)[0]
        assert (first.row, first.step, first.begin, first.end) == (
            7,
            41,
            40,
            41,
        )
        assert first.value == values[7, 40]
        assert first.usual == pytest.approx(np.median(values[7]), rel=0.02)

    def test_not_a_batch_that_shakes_all(self):
        values = noise(20, 100)
        values[:, 60] *= 1000
        values[7, 40] *= 20
        assert standing_out(table_of(values), 1, False)[0].step == 41

    def test_a_burst_has_begin_and_end(self):
        values = noise(20, 100)
        values[7, 40:50] *= 1000
        first = standing_out(table_of(values), 1, False)[0]
        assert (first.begin, first.end) == (40, 50)
        assert first.value == values[7, 40:50].max()
        assert values[7, first.step - 1] == first.value

    def test_what_is_not_finite_comes_first(self):
        values = noise(20, 100)
        values[7, 40] *= 1e5
        values[5, 70:] = np.nan
        values[9, 60:] = np.inf
        values[11] = np.nan  # never recorded
        found = standing_out(table_of(values), 3, False)
        assert [peak.row for peak in found] == [9, 5, 7]
        assert [peak.step for peak in found] == [61, 71, 41]
        # A rate that is NaN is no data.
        values = np.minimum(values, 1)
        found = standing_out(table_of(values, "clip_rate"), 1, True)
        assert found[0].row != 5

    def test_negative_values(self):
        values = noise(20, 100) - 0.01
        values[7, 40] = 1
        assert standing_out(table_of(values, "new"), 1, False)[0].row == 7

    @pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 5), (2, 2)])
    @pytest.mark.parametrize("value", [0.0, 0.5, np.nan, np.inf])
    def test_of_few_or_no_values(self, shape, value):
        found = standing_out(table_of(np.full(shape, value)), 9, False)
        assert sorted(peak.row for peak in found) == list(range(shape[0]))


class TestSelection:
    def test_variables(self):
        records = as_records(make_rows(SMALL))
        figure = plots.plot_clip_rates(records, variables="lstm.*kernel$")
        ax = panel(figure, "Clip rate of each variable")
        labels = [text.get_text() for text in ax.get_yticklabels()]
        assert labels == ["kernel", "recurrent_kernel"]
        # All weights together are what they were.
        assert "clip_rate::run:0" in lines_of(figure)
        both = plots.plot_clip_rates(records, variables=["bias", "^x|dense/k"])
        ax = panel(both, "Clip rate of each variable")
        assert len(ax.get_yticklabels()) == 3

    def test_top(self, tmp_path):
        rows = explode(make_rows(BERT), BERT[130], {120})
        figure = plots.save_report(as_records(rows), tmp_path / "a.png", top=3)
        ax = panel(figure, "Clip rate of each variable")
        assert len(ax.get_yticklabels()) == 3
        # Few enough for lines.
        names = [
            text.get_text()
            for text in panel(figure, "Weight change").get_legend().get_texts()
        ]
        assert len(names) == 4 and names[0] == "all weights"

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"variables": "("}, ValueError, "regular expression"),
            ({"variables": 3}, ValueError, "regular expression"),
            (
                {"variables": "absent"},
                ValueError,
                "No variable matches 'absent'",
            ),
            ({"variables": ["lstm", "absent"]}, ValueError, "lstm_cell/kernel"),
            ({"group_by": "layer"}, ValueError, '"block", "kind" or None'),
            ({"top": 0}, ValueError, "`top` must be an integer >= 1 or None"),
            ({"top": 1.5}, TypeError, "`top` must be an integer"),
        ],
    )
    def test_wrong_arguments(self, arguments, error, message):
        records = as_records(make_rows(SMALL, epochs=1))
        with pytest.raises(error, match=message):
            plots.plot_clip_rates(records, **arguments)


def test_spikes_are_marked_in_their_groups():
    rows = make_rows(BERT)
    rows.append((0, 1, 13, 62, BERT[40], "spike_rate", 0.9))
    rows.append((0, 1, 13, 62, "gone/kernel", "spike_rate", 0.9))
    figure = plots.plot_clip_rates(as_records(rows))
    ax = panel(figure, "Clip rate by block")
    (gid,) = [g for g in lines_of(figure) if g.startswith("spikes:tr")]
    line = lines_of(figure)[gid]
    row = list(dict.fromkeys(blocks(BERT))).index(blocks(BERT)[40])
    assert line.axes is ax
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == (
        [62],
        [row],
    )


@pytest.mark.parametrize("variables", [SMALL, BERT])
@pytest.mark.parametrize(
    ("quantity", "sign"),
    [("distance", 1), ("drift", -1)],
)
def test_unknown_quantities_have_panels(tmp_path, variables, quantity, sign):
    rows = make_rows(variables, quantities=("clip_rate", "loss"))
    new = [
        (*row[:5], quantity, sign * row[6])
        for row in rows
        if row[5] == "clip_rate"
    ]
    figure = plots.save_report(as_records(rows + new), tmp_path / "a.png")
    title = quantity.replace("_", " ").capitalize()
    ax = panel(figure, title)
    assert ax.get_yscale() == ("linear" if sign < 0 else "log")
    assert f"{quantity}::run:0" in lines_of(figure)
    titles = [ax.get_title("left") for ax in figure.axes]
    assert (f"{title} by block" in titles) == (variables is BERT)
    scalars = [(*row[:4], "", "accuracy", 0.5) for row in rows]
    figure = plots.save_report(as_records(rows + scalars), tmp_path / "a.png")
    assert "Accuracy" not in [ax.get_title("left") for ax in figure.axes]


def test_unknown_quantities_alone_are_drawn(tmp_path):
    rows = [(0, 0, 1, 1, "w", "distance", 0.5)]
    figure = plots.save_report(as_records(rows), tmp_path / "a.png")
    assert [ax.get_title("left") for ax in figure.axes] == ["Distance"]


def test_tables_are_made_once():
    columns = load(as_records(make_rows()))
    tables = _layouts.Tables(columns, Selection())
    assert tables["clip_rate"] is tables["clip_rate"]


def test_variables_that_stopped_are_named():
    rows = [
        (*row[:6], 0.0)
        if row[4] in SMALL[:2] and row[3] > 100 and "weight" in row[5]
        else row
        for row in make_rows()
    ]
    ax = plots.plot_weight_changes(as_records(rows)).axes[0]
    note = " ".join(" ".join(text.get_text().split()) for text in ax.texts)
    assert (
        "Unchanged since step 100: lstm/lstm_cell/kernel and "
        "lstm/lstm_cell/recurrent_kernel." in note
    )
