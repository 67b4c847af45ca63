import doctest
import pickle
import re
import sys
import threading
import xml.etree.ElementTree as ElementTree
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from keras_adamax import plots
from keras_adamax.plots import _figures
from tests.plots.synthetic import (
    SMALL,
    as_records,
    bert_paths,
    flat_paths,
    large_paths,
    make_rows,
    write_csv,
)
from tests.support import repeated

# Figures are Any here: half of what matplotlib's annotations allow an artist
# to hold never occurs.
plot_clip_rates: Any = plots.plot_clip_rates
plot_weight_changes: Any = plots.plot_weight_changes
plot_training: Any = plots.plot_training
save_report: Any = plots.save_report
FIGURES = {
    "clip_rates": plot_clip_rates,
    "weight_changes": plot_weight_changes,
    "training": plot_training,
}
LARGE = large_paths()
BERT = bert_paths()
FLAT = flat_paths()
LONG = [f"functional_{'x' * 50}/outer_block/{path}" * 2 for path in SMALL]
CASES = {
    "small": {"frozen": SMALL[3:4]},
    "runs": {"frozen": SMALL[3:], "nan": SMALL[1:2], "runs": 3},
    "many_runs": {"runs": 20, "epochs": 1, "batches": 10},
    "restart": {"runs": 2, "restart": True},
    "epochs": {"every": None, "epochs": 6, "batches": 57},
    "single": {"every": None, "epochs": 1, "batches": 1},
    "large": {"variables": LARGE, "frozen": LARGE[1:9], "nan": LARGE[99:103]},
    "flat": {"variables": FLAT, "frozen": FLAT[:20], "runs": 2},
    "middle": {"variables": LARGE[:30]},
    "bert": {"variables": BERT, "frozen": BERT[3:9], "nan": BERT[99:103]},
    "long": {"variables": LONG},
    "one": {"variables": SMALL[:1]},
    "clip_only": {"quantities": ("clip_rate",)},
    "delta_only": {"quantities": ("weight_delta",), "frozen": SMALL[:1]},
    "ratio_only": {"quantities": ("weight_delta_ratio",)},
    "loss_only": {"quantities": ("loss",)},
}


def records_of(case):
    return as_records(make_rows(**CASES[case]))


def values_of(records, quantity, variable="", run=0):
    here = records["quantity"] == quantity
    here &= (records["variable"] == variable) & (records["run"] == run)
    return records["step"][here], records["value"][here]


def lines_of(figure) -> dict[str, Any]:
    """Lines by their gid."""
    lines = [line for ax in figure.axes for line in ax.lines]
    return {line.get_gid(): line for line in lines if line.get_gid()}


def panel(figure, title) -> Any:
    (ax,) = [ax for ax in figure.axes if ax.get_title("left") == title]
    return ax


def map_of(ax) -> Any:
    (mesh,) = [one for one in ax.collections if isinstance(one, QuadMesh)]
    return mesh


def visible_texts(figure):
    """All text that a reader sees, as (text, box)."""
    figure.draw_without_rendering()
    found = [figure._suptitle] if figure._suptitle else []
    axes = [child for ax in figure.axes for child in (ax, *ax.child_axes)]
    for ax in axes:
        found += [ax.title, ax._left_title, ax._right_title, *ax.texts]
        if ax.get_legend():
            found += ax.get_legend().get_texts()
        for axis in (ax.xaxis, ax.yaxis):
            found += [axis.label, axis.get_offset_text()]
            low, high = sorted(axis.get_view_interval())
            slack = 1e-9 * (high - low)
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                if low - slack <= tick.get_loc() <= high + slack:
                    found += [tick.label1, tick.label2]
    return [
        (text.get_text(), text.get_window_extent())
        for text in found
        if text.get_visible() and text.get_text()
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "kind"),
    [(case, "report") for case in CASES]
    + [
        (c, kind)
        for c in ("small", "runs", "large", "flat")
        for kind in FIGURES
    ],
)
def test_no_text_overlaps_or_leaves_the_figure(case, kind):
    title = "A long title " * 9 if kind == "report" else None
    figure = _figures._figure(records_of(case), title, kind)
    assert isinstance(figure, Figure)
    assert_texts_fit(figure)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["small", "bert"])
@pytest.mark.parametrize("group_by", ["auto", "kind", None])
def test_no_text_of_a_comparison_overlaps(case, group_by):
    runs = {name: records_of(case) for name in ("one", "another one")}
    assert_texts_fit(plots.plot_comparison(runs, group_by=group_by))


def assert_texts_fit(figure):
    texts = visible_texts(figure)
    assert len(texts) > 4
    boxes = np.array([box.extents for _, box in texts])
    # A pixel of a hundred an inch may be shared by rounding.
    left, bottom, right, top = (boxes + [0.5, 0.5, -0.5, -0.5]).T
    apart = (left[:, None] >= right) | (right[:, None] <= left)
    apart |= (bottom[:, None] >= top) | (top[:, None] <= bottom)
    np.fill_diagonal(apart, True)
    clashes = [(texts[i][0], texts[j][0]) for i, j in np.argwhere(~apart)]
    assert not clashes
    width, height = figure.bbox.width, figure.bbox.height
    assert left.min() >= 0 and bottom.min() >= 0
    assert right.max() <= width and top.max() <= height


@pytest.mark.parametrize("case", ["small", "runs", "epochs", "one"])
def test_lines_are_the_records(case):
    records = records_of(case)
    drawn = {}
    for draw in FIGURES.values():
        drawn |= lines_of(draw(records))
    variables = dict.fromkeys(records["variable"].tolist())
    for quantity in ("weight_delta", "weight_delta_ratio", "clip_rate"):
        for run in np.unique(records["run"]):
            for variable in variables:
                if variable and quantity == "clip_rate":
                    continue
                line = drawn.pop(f"{quantity}:{variable}:run:{run}")
                steps, values = values_of(records, quantity, variable, run)
                assert steps.size
                np.testing.assert_array_equal(line.get_xdata(), steps)
                np.testing.assert_array_equal(line.get_ydata(), values)
    for run in np.unique(records["run"]):
        for quantity in ("loss", "val_loss"):
            line = drawn.pop(f"{quantity}::run:{run}")
            steps, values = values_of(records, quantity, "", run)
            np.testing.assert_array_equal(line.get_xdata(), steps)
            np.testing.assert_array_equal(line.get_ydata(), values)
    assert all(gid.startswith(("flag:", "run:")) for gid in drawn)


@pytest.mark.parametrize("case", ["small", "runs", "large", "flat", "single"])
def test_clip_rate_map_is_the_records(case):
    records = records_of(case)
    figure = plot_clip_rates(records, group_by=None)
    ax = panel(figure, "Clip rate of each variable")
    mesh = map_of(ax)
    array = mesh.get_array()
    variables = [v for v in dict.fromkeys(records["variable"].tolist()) if v]
    runs = np.unique(records["run"])
    expected = [
        np.concatenate(
            [values_of(records, "clip_rate", name, run)[1] for run in runs]
        )
        for name in variables
    ]
    np.testing.assert_array_equal(array.filled(np.nan), expected)
    # Each column ends at the step of its record, and the first begins at 0.
    edges = mesh.get_coordinates()[0, :, 0]
    np.testing.assert_array_equal(
        edges, [0, *np.unique(records["step"][records["variable"] != ""])]
    )
    # The first variable is on top.
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert (mesh.norm.vmin, mesh.norm.vmax) == (0, 1)
    bar = ax.child_axes[0]
    assert bar.get_ylabel() == "clipped elements\n(fraction)"
    ticks = [float(text.get_text()) for text in bar.get_yticklabels()]
    np.testing.assert_allclose(bar.get_yticks(), ticks)
    assert ticks[0] == 0 and ticks[-1] == 1


# Two in a row, and one that is the first of its run.
SPIKES = [
    (0, 1, 13, 62, "", 0.97),
    (0, 1, 13, 62, SMALL[2], 0.9),
    (0, 1, 14, 62, "", 0.5),
    (0, 1, 14, 62, SMALL[2], 1.0),
    (0, 1, 14, 62, SMALL[0], 0.8),
    (1, 0, 1, 200, "", 0.25),
    (1, 0, 1, 200, "gone/kernel", 0.4),
    (1, 0, 1, 200, SMALL[4], 0.3),
]


def test_spikes_are_marked_at_their_steps():
    rows = make_rows(runs=2)
    spikes = [(*row[:5], "spike_rate", row[5]) for row in SPIKES]
    with_spikes = as_records([*spikes, *rows])
    figure = plot_clip_rates(with_spikes)
    rates = panel(figure, "Clip rate of all weights")
    marks = lines_of(figure)
    for run, x, y in ((0, [62, 62], [0.97, 0.5]), (1, [200], [0.25])):
        line = marks[f"spikes::run:{run}"]
        assert line.axes is rates
        assert (line.get_linestyle(), line.get_marker()) == ("None", "v")
        np.testing.assert_array_equal(line.get_xdata(), x)
        np.testing.assert_array_equal(line.get_ydata(), y)
    names = panel(figure, "Clip rate of each variable")
    drawn = {
        (gid.split(":")[1], x)
        for gid, line in marks.items()
        if line.axes is names and gid.startswith("spikes:")
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
        if SMALL[int(y)] == gid.split(":")[1]
    }
    assert drawn == {(SMALL[2], 62), (SMALL[0], 62), (SMALL[4], 200)}
    for ax, label in (
        (rates, "spike, left out"),
        (names, "largest rates in a spike"),
    ):
        texts = [text.get_text() for text in ax.get_legend().get_texts()]
        assert label in texts
    # A spike that is the first of a run does not shift it: it is no update.
    assert rates.get_xlim() == (0, 400)
    assert "one after another" not in figure.axes[-1].get_xlabel()
    assert lines_of(plot_training(with_spikes))["spikes::run:1"]
    assert not any(
        gid.startswith("spikes")
        for gid in lines_of(plot_clip_rates(as_records(rows)))
    )


def test_spikes_alone_are_drawn():
    """A `fit` that ended before the first record."""
    rows = [(*row[:5], "spike_rate", row[5]) for row in SPIKES[:2]]
    assert plot_clip_rates(as_records(rows)).axes


def test_axes_have_units():
    figure = plot_training(records_of("small"))
    assert figure.axes[-1].get_xlabel() == "step (optimizer updates)"
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels == [
        "loss",
        "clipped elements\n(fraction)",
        "weight change /\nweight norm",
    ]
    figure = plot_weight_changes(records_of("large"), group_by=None)
    assert figure.axes[0].get_ylabel() == "weight change,\nL2 norm"
    assert figure.axes[-1].get_ylabel() == "variables by layer"
    bar = figure.axes[-1].child_axes[0]
    assert bar.get_ylabel() == "weight change / weight norm"


def test_panels_share_one_time_axis(tmp_path):
    figure = save_report(records_of("runs"), tmp_path / "report.png")
    assert len(figure.axes) == 5
    assert {ax.get_xlim() for ax in figure.axes} == {(0, 600)}
    figure.draw_without_rendering()
    lefts = [ax.get_position().x0 for ax in figure.axes]
    rights = [ax.get_position().x1 for ax in figure.axes]
    np.testing.assert_allclose(lefts, lefts[0])
    np.testing.assert_allclose(rights, rights[0])


@pytest.mark.parametrize("restart", [False, True])
def test_runs_are_marked_and_not_connected(restart):
    rows = make_rows(runs=3, restart=restart)
    figure = plot_training(as_records(rows))
    for ax in figure.axes:
        marks = [
            line.get_xdata()[0]
            for line in ax.lines
            if re.fullmatch(r"run:\d+", line.get_gid() or "")
        ]
        assert marks == [200, 400]
        assert ax.get_xlim() == (0, 600)
    names = [text.get_text() for text in figure.axes[0].texts]
    assert names == ["run 1", "run 2"]
    for gid, line in lines_of(figure).items():
        if gid.startswith("clip_rate"):
            begin = 200 * int(gid[-1])
            assert line.get_xdata()[0] == begin + 10
            assert line.get_xdata()[-1] == begin + 200
    shifted = "runs one after another" in figure.axes[-1].get_xlabel()
    assert shifted == restart


def test_gap_between_runs_is_no_data():
    rows = [row for row in make_rows(runs=3) if row[0] != 1]
    figure = plot_clip_rates(as_records(rows))
    mesh = map_of(figure.axes[1])
    edges = mesh.get_coordinates()[0, :, 0]
    (hidden,) = np.flatnonzero(mesh.get_array().mask.all(axis=0))
    assert (edges[hidden], edges[hidden + 1]) == (200, 400 - 0)


def test_zeros_on_the_log_scale_have_their_own_strip():
    records = records_of("runs")
    ax = panel(plot_weight_changes(records), "Weight change")
    labels = [text.get_text() for text in ax.get_yticklabels()]
    positions = dict(zip(labels, ax.get_yticks(), strict=True))
    values = records["value"][records["quantity"] == "weight_delta"]
    low = values[values > 0].min()
    assert ax.get_ylim()[0] < positions["0"] < low
    ax.figure.draw_without_rendering()
    heights = set()
    for variable in SMALL[3:]:
        flag = lines_of(ax.figure)[f"flag:weight_delta:{variable}:run:1"]
        steps, _ = values_of(records, "weight_delta", variable, 1)
        np.testing.assert_array_equal(flag.get_xdata(), steps)
        # In the strip, below all that has a place on the scale.
        pixels = flag.get_transform().transform(flag.get_xydata())[:, 1]
        assert (pixels < ax.transData.transform((0, low))[1]).all()
        assert (pixels > ax.transAxes.transform((0, 0))[1]).all()
        heights |= set(flag.get_ydata())
    assert len(heights) == 2
    note = [text.get_text() for text in ax.texts]
    assert any(
        "Never changed in these records: dense/kernel and dense/bias." in text
        for text in note
    )


def test_no_strip_without_zeros():
    figure = plot_weight_changes(records_of("restart"))
    for ax in figure.axes:
        names = [text.get_text() for text in ax.get_yticklabels()]
        assert "0" not in names and "NaN/inf" not in names
        assert not any("Never" in text.get_text() for text in ax.texts)


def test_variable_that_froze_later_is_a_zero_but_not_never_changed():
    rows = make_rows()
    frozen = [
        (*row[:6], 0.0)
        if row[4] == SMALL[0] and row[3] > 100 and "weight" in row[5]
        else row
        for row in rows
    ]
    ax = plot_weight_changes(as_records(frozen)).axes[0]
    assert not any("Never" in text.get_text() for text in ax.texts)
    flag = lines_of(ax.figure)[f"flag:weight_delta:{SMALL[0]}:run:0"]
    shown = ~np.isnan(flag.get_ydata())
    np.testing.assert_array_equal(shown, flag.get_xdata() > 100)


def test_all_weights_frozen():
    figure = plot_weight_changes(
        {
            **as_records(make_rows(frozen=SMALL)),
            "value": np.zeros(len(make_rows())),
        }
    )
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["0"]
    note = figure.axes[0].texts[-1].get_text()
    assert "lstm/lstm_cell/bias and 2 more" in note


def test_unchanged_and_missing_cells_of_the_map():
    records = records_of("large")
    figure = plot_weight_changes(records, group_by=None)
    ax = panel(figure, "Weight change ratio of each variable")
    mesh = map_of(ax)
    rgba = mesh.cmap(mesh.norm(mesh.get_array()))
    for row, variable in enumerate(LARGE):
        _, values = values_of(records, "weight_delta_ratio", variable)
        white = (rgba[row] == 1).all(axis=-1)
        np.testing.assert_array_equal(white, values == 0)
        hidden = np.ma.getmaskarray(mesh.get_array())[row]
        np.testing.assert_array_equal(hidden, np.isnan(values))
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["no data", "unchanged (exactly 0)"]
    background = [
        patch
        for patch in ax.patches
        if isinstance(patch, Rectangle) and patch.get_hatch()
    ]
    assert len(background) == 1
    assert background[0].get_zorder() < mesh.get_zorder()
    # All positive values are on the scale.
    known = records["value"][records["quantity"] == "weight_delta_ratio"]
    known = known[known > 0]
    assert mesh.norm.vmin <= known.min() and known.max() <= mesh.norm.vmax


def test_map_has_no_legend_where_all_is_known():
    ax = plot_clip_rates(records_of("small")).axes[1]
    assert ax.get_legend() is None
    assert not ax.patches


def test_nan_is_marked():
    records = records_of("runs")
    ax = plot_weight_changes(records).axes[0]
    flag = lines_of(ax.figure)[f"flag:weight_delta:{SMALL[1]}:run:0"]
    _, values = values_of(records, "weight_delta", SMALL[1])
    shown = ~np.isnan(flag.get_ydata())
    np.testing.assert_array_equal(shown, np.isnan(values))
    assert shown.any() and not shown.all()
    assert "NaN/inf" in [text.get_text() for text in ax.get_yticklabels()]


def test_summary_without_a_value_is_hatched():
    rows = [
        (*row[:6], np.nan if row[3] > 100 and not row[4] else row[6])
        for row in make_rows()
    ]
    for figure in (f(as_records(rows)) for f in FIGURES.values()):
        for ax in figure.axes:
            if not ax.lines:
                continue
            spans = [patch for patch in ax.patches if patch.get_hatch()]
            (span,) = spans
            box = span.get_path().get_extents(span.get_patch_transform())
            assert (box.x0, box.x1) == (100, 200)


def test_diverged_training_is_drawn():
    values = [1e-45, 1e38, np.inf, np.nan, 1e300, 5e-324]
    rows = [
        (0, 0, step, step, variable, quantity, value)
        for step, value in enumerate(values, 1)
        for variable in ("", "w")
        for quantity in ("weight_delta", "weight_delta_ratio", "loss")
    ]
    for draw in FIGURES.values():
        draw(as_records(rows)).draw_without_rendering()
    rows = [
        (0, 0, 1, 1, f"w{i}", "weight_delta", value)
        for i, value in enumerate(values * 2)
    ]
    plot_weight_changes(as_records(rows)).draw_without_rendering()


def test_many_variables_are_a_range():
    records = records_of("large")
    figure = plot_weight_changes(records)
    ax = panel(figure, "Weight change ratio")
    assert {gid for gid in lines_of(figure) if "weight_delta_ratio" in gid} == {
        "weight_delta_ratio::run:0"
    }
    outer = ax.collections[0].get_paths()[0].vertices
    by_step = {}
    for variable in LARGE:
        for step, value in zip(
            *values_of(records, "weight_delta_ratio", variable), strict=True
        ):
            if value > 0:
                by_step.setdefault(step, []).append(value)
    for step, values in by_step.items():
        heights = outer[outer[:, 0] == step, 1]
        assert heights.min() == min(values)
        assert heights.max() == max(values)


@pytest.mark.parametrize(
    ("case", "title"),
    [
        ("clip_only", "Weight change"),
        ("loss_only", "Clip rate"),
        ("loss_only", "Weight change"),
    ],
)
def test_what_was_not_recorded_is_said(case, title):
    draw = {
        "Clip rate": plot_clip_rates,
        "Weight change": plot_weight_changes,
    }[title]
    (ax,) = draw(records_of(case)).axes
    assert ax.texts[0].get_text() == f"{title}: not recorded"


def test_training_says_what_is_missing_and_the_report_leaves_it_out(tmp_path):
    figure = plot_training(records_of("clip_only"))
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert "Loss: not recorded" in texts
    assert "Weight change ratio: not recorded" in texts
    titles = {
        "clip_only": ["Clip rate of all weights", "Clip rate of each variable"],
        "delta_only": ["Weight change"],
        "ratio_only": ["Weight change ratio"],
        "loss_only": ["Loss"],
    }
    for case, expected in titles.items():
        figure = save_report(records_of(case), tmp_path / "a.png")
        assert [ax.get_title("left") for ax in figure.axes] == expected


def test_empty_records(tmp_path):
    path = write_csv(tmp_path / "run.csv", [])
    for draw in FIGURES.values():
        figure = draw(path)
        assert "not recorded" in figure.axes[0].texts[0].get_text()
    save_report(path, tmp_path / "report.png")


def test_only_variables_or_only_the_summary():
    rows = make_rows()
    summary = as_records([row for row in rows if not row[4]])
    single = as_records([row for row in rows if row[4]])
    many = as_records([row for row in make_rows(LARGE[:9]) if row[4]])
    for draw in FIGURES.values():
        for records in (summary, single, many):
            draw(records).draw_without_rendering()
    assert len(plot_clip_rates(summary).axes) == 1
    assert len(plot_clip_rates(single).axes) == 1


def test_a_single_record_is_visible():
    figure = plot_training(records_of("single"))
    for gid, line in lines_of(figure).items():
        assert line.get_xdata().tolist() == [1], gid
        assert line.get_marker() not in ("", "None")
        assert line.get_markevery() == [0]


def test_record_between_missing_ones_has_a_marker():
    values = np.full(400, np.nan)
    values[[7, 211]] = 0.5
    rows = [
        (0, 0, i + 1, i + 1, "", "clip_rate", v) for i, v in enumerate(values)
    ]
    line = lines_of(plot_clip_rates(as_records(rows)))["clip_rate::run:0"]
    assert {7, 211} <= set(line.get_markevery())


def test_later_of_two_equal_records_holds():
    rows = [
        (0, 0, 10, 10, "", "loss", 5.0),
        (0, 0, 20, 20, "", "loss", 2.0),
        (0, 0, 10, 10, "", "loss", 3.0),
    ]
    line = lines_of(plot_training(as_records(rows)))["loss::run:0"]
    assert line.get_ydata().tolist() == [3.0, 2.0]


def test_records_between_which_nothing_was_updated():
    # As with skip_nonfinite: batches pass, the steps stand still.
    rows = [
        (0, 0, batch, step, variable, "clip_rate", 0.5)
        for batch, step in ((10, 0), (20, 0), (30, 0))
        for variable in ("", "w")
    ]
    for draw in FIGURES.values():
        draw(as_records(rows)).draw_without_rendering()


def test_loss_of_epochs_beside_rates_of_batches():
    figure = plot_training(records_of("small"))
    lines = lines_of(figure)
    assert lines["loss::run:0"].get_xdata().tolist() == [50, 100, 150, 200]
    assert len(lines["clip_rate::run:0"].get_xdata()) == 20


@pytest.mark.parametrize(("last", "scale"), [(0.5, "linear"), (1e-3, "log")])
def test_loss_scale(last, scale):
    rows = [(0, 0, i, i, "", "loss", v) for i, v in ((1, 1.0), (2, last))]
    ax = plot_training(as_records(rows)).axes[0]
    assert ax.get_yscale() == scale


def test_warm_up_is_explained_where_it_is_seen():
    def notes(rows):
        figure = plot_clip_rates(as_records(rows))
        return " ".join(text.get_text() for text in figure.axes[0].texts)

    rows = make_rows()
    assert "clip_epsilon" in notes(rows)
    assert "clip_epsilon" not in notes([row for row in rows if row[1] > 1])


def test_many_records_are_merged():
    count = 2500
    values = np.arange(count) / count
    rows = [
        (0, 0, i + 1, i + 1, "w", "clip_rate", v) for i, v in enumerate(values)
    ]
    mesh = map_of(plot_clip_rates(as_records(rows)).axes[0])
    columns = mesh.get_array().filled(np.nan)[0]
    assert len(columns) == 834
    np.testing.assert_allclose(columns[0], values[:3].max())
    np.testing.assert_allclose(columns[-1], values[-1])
    edges = mesh.get_coordinates()[0, :, 0]
    assert edges[:3].tolist() == [0, 3, 6] and edges[-1] == count


def test_colours_do_not_stand_alone():
    figure = plot_weight_changes(as_records(make_rows(LARGE[:6])))
    lines = [
        line
        for gid, line in lines_of(figure).items()
        if gid.startswith("weight_delta:")
    ]
    assert len(lines) == 7
    for look in ("get_color", "get_marker", "_unscaled_dash_pattern"):
        looks = [getattr(line, look) for line in lines]
        looks = [str(one() if callable(one) else one) for one in looks]
        # The summary shares dashes and marker with one variable.
        assert len(set(looks)) >= 6
    width = [line.get_linewidth() for line in lines]
    assert width[0] > 1.5 * max(width[1:])
    names = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert names[0] == "all weights" and len(set(names)) == 7


def test_names_are_not_typeset():
    names = ["a/$x_1^2$/kernel", "a/_private/$\\bad{$", "a/%d & {}/bias"]
    rows = make_rows(names)
    for draw in FIGURES.values():
        figure = draw(as_records(rows), title="$\\frac$ $")
        figure.draw_without_rendering()
    figure = plot_weight_changes(as_records(rows))
    shown = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert shown[1:] == [name.removeprefix("a/") for name in names]


def test_figures_can_be_pickled():
    for case in ("small", "large"):
        figure = plot_clip_rates(records_of(case))
        copy = pickle.loads(pickle.dumps(figure))
        assert lines_of(copy).keys() == lines_of(figure).keys()


def test_title():
    figure = plot_training(records_of("single"), title="digits")
    assert figure.get_suptitle() == "digits"
    assert plot_training(records_of("single")).get_suptitle() == ""


@pytest.mark.parametrize("suffix", ["svg", *repeated("png", "pdf", "PNG")])
def test_formats(tmp_path, suffix):
    path = tmp_path / f"report.{suffix}"
    save_report(records_of("large"), str(path))
    data = path.read_bytes()
    if suffix == "svg":
        root = ElementTree.fromstring(data)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
    else:
        magic = {"png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF-"}
        assert data.startswith(magic[suffix.lower()])
    # 200 rows of cells are one image.
    assert len(data) < 2**20


@pytest.mark.parametrize("name", ["report", "report.jpg", "report.csv"])
def test_other_formats_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"end in \.png, \.pdf, \.svg"):
        save_report(records_of("single"), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_unwritable_output(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_report(records_of("single"), tmp_path / "no" / "a.png")


def test_global_state_is_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    pyplot = sys.modules.get("matplotlib.pyplot")
    numbers = pyplot.get_fignums() if pyplot else []
    save_report(records_of("small"), tmp_path / "report.png")
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert (pyplot.get_fignums() if pyplot else []) == numbers


def test_dark_style_does_not_hide_anything():
    dark: Any = {
        "text.color": "white",
        "axes.facecolor": "black",
        "axes.edgecolor": "white",
        "axes.labelcolor": "white",
        "axes.titlecolor": "white",
        "xtick.color": "white",
        "ytick.color": "white",
        "axes.grid": True,
        "figure.facecolor": "black",
    }
    with matplotlib.rc_context(dark):
        for draw in FIGURES.values():
            figure = draw(records_of("large"), title="dark")
            figure.draw_without_rendering()
            assert figure.get_facecolor() == (1, 1, 1, 1)
            for text in figure.findobj(Text):
                if text.get_text():
                    assert sum(to_rgb(text.get_color())) < 1.5, text
            for ax in figure.axes:
                assert ax.get_facecolor() == (1, 1, 1, 1)


@pytest.mark.slow
def test_threads_draw_the_same(tmp_path):
    records = records_of("small")

    def draw(name):
        save_report(records, tmp_path / name)

    threads = [
        threading.Thread(target=draw, args=(f"{i}.png",)) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    draw("main.png")
    pictures = [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(pictures) == 5
    assert len(set(pictures)) == 1


def test_without_matplotlib(monkeypatch, tmp_path):
    records = records_of("single")
    # The modules that need it may have been imported by another test.
    for name in list(sys.modules):
        if name.partition(".")[0] == "matplotlib":
            monkeypatch.setitem(sys.modules, name, None)
    for name in (
        *("_comparison", "_layouts", "_sheet", "_panels", "_maps"),
        *("_heat_map", "_scales", "_marks"),
    ):
        monkeypatch.delitem(sys.modules, f"keras_adamax.plots.{name}", False)
        monkeypatch.delattr(plots, name, False)
    assert plots.read_records(records)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot_training(records)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        save_report(records, tmp_path / "report.png")


@pytest.mark.slow
def test_docstrings(tmp_path, monkeypatch):
    class Logger:
        records = records_of("small")

    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "run.csv", make_rows())
    plots.write_records("run.csv", "run.npz")
    result = doctest.testmod(_figures, extraglobs={"logger": Logger()})
    assert result.attempted and not result.failed
    assert (tmp_path / "report.png").stat().st_size
