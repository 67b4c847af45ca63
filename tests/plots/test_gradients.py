"""Figures of gradient norms: which layer, when, how large."""

import re

import numpy as np
import pytest

from keras_adamax import plots
from keras_adamax.plots.__main__ import main
from tests.plots.synthetic import SMALL, as_records, bert_paths, write_csv
from tests.plots.test_figures import lines_of, panel

MIDDLE = tuple(
    f"block_{i // 4}/dense_{i % 4 // 2}/{('kernel', 'bias')[i % 2]}"
    for i in range(24)
)
RECORDS = 20


def make_rows(variables, exploding=None, nonfinite=None):
    """Rows of 20 records; one variable explodes in record 12."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(1, RECORDS + 1):
        head = (0, 0, 10 * k, 10 * k)
        norms = 10 ** rng.normal(-1, 0.1, len(variables))
        shares = rng.uniform(0, 0.02, len(variables))
        if exploding and k == 12:
            norms[variables.index(exploding)] *= 1e4
            shares[variables.index(exploding)] = 0.9999
        for values, quantity in (
            (norms, "gradient_norm"),
            (shares, "clipped_share"),
            (1e-3 * norms, "update_norm"),
        ):
            rows += [
                (*head, v, quantity, x)
                for v, x in zip(variables, values, strict=True)
            ]
        rows.append((*head, "", "gradient_norm", np.linalg.norm(norms)))
        if nonfinite and k == 15:
            rows += [
                (*head, v, "nonfinite_elements", 7.0 * (v == nonfinite))
                for v in variables
            ]
    return rows


def titles_of(figure):
    return [ax.get_title("left") for ax in figure.axes if ax.get_title("left")]


def texts_of(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_few_variables_have_a_line_each():
    rows = make_rows(SMALL, SMALL[1], SMALL[0])
    figure = plots.plot_gradients(as_records(rows))
    assert titles_of(figure) == [
        "Gradient norm",
        "Clipped share of each variable",
        "Update norm",
        "NaNs and infinities",
    ]
    lines = lines_of(figure)
    line = lines[f"gradient_norm:{SMALL[1]}:run:0"]
    assert panel(figure, "Gradient norm").get_yscale() == "log"
    assert np.argmax(line.get_ydata()) == 11
    assert len(lines["gradient_norm::run:0"].get_xdata()) == RECORDS
    bad = lines[f"nonfinite_elements:{SMALL[0]}:run:0"]
    assert (bad.get_xdata().tolist(), bad.get_ydata().tolist()) == ([150], [7])


@pytest.mark.parametrize("variables", [MIDDLE, tuple(bert_paths())])
def test_of_many_the_one_that_explodes_is_named(variables):
    bad = variables[9]
    figure = plots.plot_gradients(as_records(make_rows(variables, bad)))
    pattern = r"[\d.e+]+ at step 120 \(usually 0\.\d+\)"
    assert sum(bool(re.match(pattern, t)) for t in texts_of(figure)) == 2
    name = "Gradient norm of each variable"
    if variables is not MIDDLE:
        name = "Gradient norm: variables that stand out"
    assert name in titles_of(figure)
    label = panel(figure, name).get_yticklabels()[0 if "out" in name else 9]
    assert bad.startswith(label.get_text().split("\N{HORIZONTAL ELLIPSIS}")[0])


def test_the_report_and_a_comparison_have_them(tmp_path):
    records = as_records(make_rows(SMALL, SMALL[1]))
    figure = plots.save_report(records, tmp_path / "report.png")
    assert titles_of(figure)[0] == "Gradient norm"
    figure = plots.plot_comparison({"one": records, "other": records})
    assert "Gradient norm of all weights" in titles_of(figure)


def test_what_was_not_recorded_is_said():
    figure = plots.plot_gradients(
        as_records([(0, 0, 1, 1, "w", "clip_rate", 0.5)])
    )
    assert "Gradient norm: not recorded" in texts_of(figure)


def test_the_command_line(tmp_path, capsys):
    path = tmp_path / "run.csv"
    write_csv(path, make_rows(SMALL))
    output = tmp_path / "gradients.png"
    arguments = [str(path), "--kind", "gradients", "-o", str(output)]
    assert main(arguments) == 0
    assert output.stat().st_size > 10_000
    write_csv(path, [(0, 0, 1, 1, "w", "clip_rate", 0.5)])
    assert main(arguments) == 2
    assert "it needs one of gradient_norm, clipped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("quantity", "value", "rule"),
    [
        ("clipped_share", 1.5, r"range \[0, 1\]"),
        ("gradient_norm", -1.0, "must not be negative"),
        ("nonfinite_elements", -1.0, "must not be negative"),
    ],
)
def test_what_no_logger_writes_is_refused(quantity, value, rule):
    with pytest.raises(ValueError, match=rule):
        plots.plot_gradients(as_records([(0, 0, 1, 1, "w", quantity, value)]))
