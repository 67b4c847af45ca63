import sys

import keras_tuner
import numpy as np
import pytest
from matplotlib.figure import Figure

from keras_adamax_tuning import AdamaxClippedSpace, SearchResult
from keras_adamax_tuning.results import figures
from keras_adamax_tuning.results.axes import Axis, axes_of
from keras_adamax_tuning.results.figure_parts import round_ticks
from keras_adamax_tuning.results.importance import importances
from keras_adamax_tuning.results.search_result import FIGURES
from keras_adamax_tuning.space import ranges
from tests.tuning.synthetic import make_search, make_trial

CASES = {
    "small": {"count": 30, "large": False},
    "large": {"count": 60},
    "wide": {"count": 60, "spread": 4},
    "few": {"count": 3},
    "one": {"count": 1, "large": False},
    "many": {"count": 400, "large": False},
}
DRAW = {
    "scores": lambda trials, space, **more: figures.plot_scores(trials, **more),
    "hyperparameters": figures.plot_hyperparameters,
    "parallel": figures.plot_parallel_coordinates,
    "importance": figures.plot_importance,
}


def lines_of(figure):
    lines = [line for ax in figure.axes for line in ax.lines]
    return {line.get_gid(): line for line in lines if line.get_gid()}


def visible_texts(figure):
    figure.draw_without_rendering()
    found = [figure._suptitle] if figure._suptitle else []
    for legend in figure.legends:
        found += legend.get_texts()
    for ax in figure.axes:
        found += ax.texts
        if not ax.axison:
            continue
        for axis in (ax.xaxis, ax.yaxis):
            found += [axis.label, axis.get_offset_text()]
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                if low <= tick.get_loc() <= high:
                    found += [tick.label1, tick.label2]
    return [text for text in found if text.get_visible() and text.get_text()]


def corners(text):
    """The four corners of a text's box, which may be turned."""
    box = text.get_window_extent()
    angle = np.deg2rad(text.get_rotation())
    if not angle:
        x = [box.x0, box.x1, box.x1, box.x0]
        return np.array([x, [box.y0, box.y0, box.y1, box.y1]]).T
    # The extent of a box of width w and height h, turned by the angle.
    cos, sin = np.cos(angle), np.sin(angle)
    w, h = np.linalg.solve([[cos, sin], [sin, cos]], [box.width, box.height])
    start = np.array([box.x0 + h * sin, box.y0])
    along, up = w * np.array([cos, sin]), h * np.array([-sin, cos])
    return np.array([start, start + along, start + along + up, start + up])


def overlap(first, second, slack=1.0):
    """Whether two convex shapes share area: separating axes."""
    for shape in (first, second):
        for edge in np.roll(shape, -1, axis=0) - shape:
            normal = np.array([-edge[1], edge[0]]) / np.linalg.norm(edge)
            a, b = first @ normal, second @ normal
            if a.max() - slack <= b.min() or b.max() - slack <= a.min():
                return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "kind", "direction"),
    [(case, kind, "min") for case in CASES for kind in DRAW]
    + [("wide", kind, "max") for kind in ("scores", "hyperparameters")],
)
def test_no_text_overlaps_or_leaves_the_figure(case, kind, direction):
    trials, space = make_search(**CASES[case])
    figure = DRAW[kind](
        trials, space, objective="val_loss", direction=direction
    )
    assert isinstance(figure, Figure)
    texts = visible_texts(figure)
    assert texts
    shapes = [corners(text) for text in texts]
    clashes = [
        (texts[i].get_text(), texts[j].get_text())
        for i in range(len(texts))
        for j in range(i)
        if overlap(shapes[i], shapes[j])
    ]
    assert not clashes
    every = np.concatenate(shapes)
    assert every.min() >= -1
    assert every[:, 0].max() <= figure.bbox.width + 1
    assert every[:, 1].max() <= figure.bbox.height + 1


@pytest.mark.parametrize("direction", ["min", "max"])
def test_scores_are_the_trials(direction):
    trials, _ = make_search(50, spread=0.1)
    figure = figures.plot_scores(trials, "val_loss", direction)
    lines = lines_of(figure)
    for state in ("completed", "pruned"):
        chosen = [t for t in trials if t.state == state]
        assert chosen
        np.testing.assert_array_equal(
            lines[state].get_xdata(), [t.number for t in chosen]
        )
        np.testing.assert_array_equal(
            lines[state].get_ydata(), [t.score for t in chosen]
        )
    np.testing.assert_array_equal(
        lines["failed"].get_xdata(),
        [t.number for t in trials if t.state == "failed"],
    )
    best = lines["best so far"]
    better = min if direction == "min" else max
    for x, y in zip(best.get_xdata(), best.get_ydata(), strict=True):
        assert y == better(
            t.score for t in trials if t.state == "completed" and t.number <= x
        )
    assert (
        direction[:2]
        == {"lower": "mi", "higher": "ma"}[
            figure.axes[0].get_ylabel().split("(")[1].split()[0]
        ]
    )


def test_scores_that_spread_get_a_log_scale():
    scales = []
    for spread in (0.1, 4):
        trials, _ = make_search(spread=spread)
        scales.append(figures.plot_scores(trials).axes[0].get_yscale())
    assert scales == ["linear", "log"]


@pytest.mark.parametrize("direction", ["min", "max"])
@pytest.mark.parametrize("kind", ["diverged", "early"])
def test_bad_trials_do_not_rule_the_axis_and_are_counted(kind, direction):
    rng = np.random.default_rng(0)
    bad = {"diverged": [1e6, 3e8, 1e6], "early": [1.0, 1.6, 2.3]}[kind]
    scores = [*bad, *rng.uniform(0.19, 0.21, 17)]
    if direction == "max":
        scores = [1 - score for score in scores]
    trials = [
        make_trial(i, score=s, hyperparameters={"a": i / 20})
        for i, s in enumerate(scores)
    ]
    trials.append(make_trial(20, "failed", hyperparameters={"a": 0.5}))
    for draw in (figures.plot_scores, figures.plot_hyperparameters):
        figure = draw(trials, objective="loss", direction=direction)
        ax = figure.axes[0]
        low, high = ax.get_ylim()
        good = scores[3:]
        assert (max(good) - min(good)) / (high - low) > 0.5
        np.testing.assert_array_equal(
            len(lines_of(figure)["far"].get_xdata()), 3
        )
        words = [text.get_text() for text in figure.legends[0].get_texts()]
        worst = bad[1] if kind == "diverged" else bad[2]
        worst = worst if direction == "min" else 1 - worst
        assert f"3 beyond the axis (up to {worst:.3g})" in words
    figure = figures.plot_parallel_coordinates(trials, (), "loss", direction)
    ends = [lines_of(figure)[f"trial:{i}"].get_ydata()[-1] for i in range(20)]
    assert all(not 0 <= end <= 1 for end in ends[:3])
    assert np.ptp(ends[3:]) == pytest.approx(1)


def test_scores_that_spread_evenly_are_all_on_the_axis():
    for spread in (0.1, 1, 4):
        for seed in range(5):
            trials, _ = make_search(40, spread=spread, seed=seed)
            assert "far" not in lines_of(figures.plot_scores(trials))


def test_categories_are_not_spread():
    hp = keras_tuner.HyperParameters()
    hp.Choice("kind", ["a", "b"])
    hp.Int("layers", 1, 3)
    hp.Boolean("flag")
    hp.Float("rate", 0.0, 1.0)
    rng = np.random.default_rng(0)
    trials = [
        make_trial(
            i,
            score=i + 1.0,
            hyperparameters={
                one.name: one.random_sample(int(rng.integers(1 << 31)))
                for one in hp.space
            },
        )
        for i in range(20)
    ]
    figure = figures.plot_hyperparameters(trials, hp.space)
    places = {
        ax.get_xlabel(): set(np.asarray(ax.collections[0].get_offsets())[:, 0])
        for ax in figure.axes
    }
    assert places.pop("rate") == {t.hyperparameters["rate"] for t in trials}
    assert places == {"kind": {0, 1}, "layers": {0, 1, 2}, "flag": {0, 1}}
    (layers,) = [ax for ax in figure.axes if ax.get_xlabel() == "layers"]
    labels = [label.get_text() for label in layers.get_xticklabels()]
    assert labels == ["1", "2", "3"]


def test_names_of_a_space_are_whole():
    hp = keras_tuner.HyperParameters()
    kind = hp.Choice("learning_rate_schedule", ["constant", "exponential"])
    hp.Choice("units", ["a long name of a choice", "short"])
    longest = "learning_rate_exponential_warmup_steps"
    hp.Int(longest, 1, 100)
    trials = [
        make_trial(
            number,
            score=1.0 + number,
            hyperparameters={
                "learning_rate_schedule": kind,
                "units": hp.get("units"),
                longest: 10 * number,
            },
        )
        for number in range(3)
    ]
    figure = figures.plot_hyperparameters(trials, hp.space)
    panels = {ax.get_xlabel(): ax for ax in figure.axes}
    assert longest in panels
    labels = panels["learning_rate_schedule"].get_xticklabels()
    assert [label.get_text() for label in labels] == ["constant", "exponential"]
    labels = [label.get_text() for label in panels["units"].get_xticklabels()]
    assert "…" in labels[0] and labels[1] == "short"


def test_figures_show_what_the_user_typed():
    trials, space = make_search(30)
    for draw in list(DRAW.values())[1:]:
        figure = draw(trials, space, objective="val_loss", direction="min")
        texts = {text.get_text() for text in visible_texts(figure)}
        assert {"beta_2", "clip_multiplier"} <= texts
        assert not any("one_minus" in t or "minus_1" in t for t in texts)
    figure = figures.plot_hyperparameters(trials, space)
    panels = {ax.get_xlabel(): ax for ax in figure.axes}
    beta_2 = panels["beta_2"]
    labels = [label.get_text() for label in beta_2.get_xticklabels()]
    assert {"0.9", "0.99", "0.999", "0.9999"} >= set(labels) > {"0.999"}
    # Larger values of beta_2 are to the right.
    assert beta_2.get_xlim()[0] > beta_2.get_xlim()[1]
    labels = panels["clip_multiplier"].get_xticklabels()
    assert {label.get_text() for label in labels} == {"1.01", "1.1", "2"}


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("one_minus_beta_2", 0.001, ("beta_2", 0.999)),
        ("encoder_one_minus_beta_1", 0.25, ("encoder_beta_1", 0.75)),
        ("clip_multiplier_minus_1", 0.2, ("clip_multiplier", 1.2)),
        ("learning_rate", 0.1, ("learning_rate", 0.1)),
        ("layers_minus_1", 3, ("layers_minus_1", 3)),
        ("beta_2", "Schedule", ("beta_2", "Schedule")),
    ],
)
def test_shown_names_and_values(name, value, shown):
    assert (
        ranges.shown_name(name),
        ranges.shown_value(name, value),
    ) == shown


def test_the_names_that_a_space_records_are_all_shown_as_typed():
    hp = keras_tuner.HyperParameters()
    AdamaxClippedSpace(
        clip_multiplier_schedule=["constant", "linear"],
        beta_2_schedule=["constant", "exponential"],
        num_steps=10,
    ).build_optimizer(hp)
    shown = {ranges.shown_name(one.name) for one in hp.space}
    assert not any("minus" in name for name in shown), shown


def test_one_diverged_trial_does_not_decide_the_importance():
    rng = np.random.default_rng(0)
    trials = []
    for number in range(40):
        values = {"matters": rng.uniform(), "does_not": rng.uniform()}
        score = 0.1 + (values["matters"] - 0.5) ** 2
        if number == 7:
            score, values["does_not"] = 1e9, 0.01
        trials.append(make_trial(number, score=score, hyperparameters=values))
    figure = figures.plot_importance(trials)
    (ax,) = figure.axes
    for container in ax.containers:
        widths = [bar.get_width() for bar in container]
        assert widths[-1] > 0.8 and len(widths) == 2
    assert [label.get_text() for label in ax.get_yticklabels()][-1] == "matters"
    label = ax.get_xlabel()
    assert "The two may differ" in label and "best tenth" in label
    assert "(4 trials here)" in label and "fewer than 100" in label


def test_each_hyperparameter_has_the_scale_of_its_space():
    trials, space = make_search(60)
    figure = figures.plot_hyperparameters(trials, space, "val_loss")
    panels = {ax.get_xlabel().partition("\n")[0]: ax for ax in figure.axes}
    assert len(panels) == 15
    assert "fixed" not in panels
    logs = {name for name, ax in panels.items() if ax.get_xscale() == "log"}
    assert logs >= {"learning_rate", "epsilon", "weight_decay"}
    assert "beta_1" in panels and "beta_1" not in logs
    points = panels["learning_rate"].collections[0].get_offsets()
    known = {
        (t.hyperparameters["learning_rate"], t.score)
        for t in trials
        if t.state == "completed"
    }
    assert {tuple(point) for point in points.tolist()} == known
    used = sum("learning_rate_decay_steps" in t.hyperparameters for t in trials)
    label = panels["learning_rate_decay_steps"].get_xlabel()
    assert label.endswith(f"(only in {used} trials)")


def test_parallel_coordinates_have_a_line_for_each_completed_trial():
    trials, space = make_search(30)
    figure = figures.plot_parallel_coordinates(trials, space, "val_loss")
    lines = lines_of(figure)
    completed = [t for t in trials if t.state == "completed"]
    assert set(lines) == {f"trial:{t.number}" for t in completed}
    names = [axis.name for axis in axes_of(trials, space)]
    place = names.index("learning_rate_decay_steps")
    for trial in completed:
        heights = lines[f"trial:{trial.number}"].get_ydata()
        assert len(heights) == len(names) + 1
        used = "learning_rate_decay_steps" in trial.hyperparameters
        assert (heights[place] >= 0) == used
        rate = trial.hyperparameters["learning_rate"]
        assert heights[0] == pytest.approx((np.log10(rate) + 4) / 2)
    scores = [t.score for t in completed]
    ends = [lines[f"trial:{t.number}"].get_ydata()[-1] for t in completed]
    assert np.argsort(scores).tolist() == np.argsort(ends).tolist()


def test_importance_finds_what_decides_and_says_when_trials_are_too_few():
    rng = np.random.default_rng(0)
    trials = []
    for number in range(40):
        values = {"matters": rng.uniform(), "does_not": rng.uniform()}
        values["choice"] = ["a", "b"][number % 2]
        if number % 3:
            values["sometimes"] = rng.uniform()
        trials.append(
            make_trial(
                number,
                score=(values["matters"] - 0.5) ** 2,
                hyperparameters=values,
            )
        )
    axes = axes_of(trials)
    for evaluator, shares in importances(trials, axes, "min").items():
        assert sum(shares.values()) == pytest.approx(1)
        assert max(shares, key=shares.get) == "matters"
        assert ("sometimes" in shares) == (evaluator == "PED-ANOVA")
    assert importances(trials[:9], axes, "min") == {}
    figure = figures.plot_importance(trials[:9])
    assert "at least 10 completed trials; there are 9" in " ".join(
        text.get_text() for text in visible_texts(figure)
    )


def test_equal_scores_leave_nothing_to_explain():
    trials = [
        make_trial(i, score=1.0, hyperparameters={"a": i}) for i in range(12)
    ]
    texts = visible_texts(figures.plot_importance(trials))
    assert "same score" in " ".join(text.get_text() for text in texts)


@pytest.mark.parametrize("kind", DRAW)
def test_searches_without_anything_to_draw(kind):
    for trials in (
        [],
        [make_trial(0, "failed")],
        [make_trial(0, "running")],
        [make_trial(0, score=1.0)],
        [make_trial(i, score=1.0, hyperparameters={"a": i}) for i in range(12)],
    ):
        DRAW[kind](trials, []).draw_without_rendering()


def test_save_figures_replaces_files(tmp_path):
    trials, space = make_search(12, large=False)
    result = SearchResult(tmp_path, "val_loss", "min", trials, space)
    for _ in range(2):
        paths = result.save_figures()
    assert sorted(path.name for path in paths) == [
        "hyperparameters.png",
        "importance.png",
        "parallel_coordinates.png",
        "scores.png",
    ]
    assert sorted((tmp_path / "figures").iterdir()) == sorted(paths)
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths)


def test_without_matplotlib_the_error_names_it(tmp_path, monkeypatch):
    name = "keras_adamax_tuning.results.figures"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = SearchResult(tmp_path, "loss", "min", ())
    with pytest.raises(ImportError, match="pip install matplotlib"):
        result.save_figures()
    failed = {}
    assert result.save_figures(on_error=failed.__setitem__) == []
    assert list(failed) == list(FIGURES)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1e-4, 1e-2, [1e-4, 1e-3, 1e-2]),
        (1e-10, 1e-6, [1e-10, 1e-8, 1e-6]),
        (0.002, 0.005, [0.002, 0.005]),
        (16, 128, [20, 50, 100]),
    ],
)
def test_log_ticks(low, high, expected):
    assert round_ticks(low, high, True, 4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.8, 0.99), (-3, 1e6), (16, 128), (5, 5)]
)
def test_linear_ticks(low, high):
    ticks = round_ticks(low, high, False, 5)
    assert 1 <= len(ticks) <= 5
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    assert len(ticks) >= 2 or low == high


def test_axes_without_a_declared_space_follow_the_values():
    trials = [
        make_trial(0, hyperparameters={"a": 1e-4, "b": 1, "c": True, "d": 1}),
        make_trial(1, hyperparameters={"a": 1e-1, "b": 2, "c": False, "d": 1}),
    ]
    assert axes_of(trials) == [
        Axis("a", "log", (), 1e-4, 1e-1),
        Axis("b", "linear", (), 1, 2),
        Axis("c", "choice", (True, False), 0, 1),
    ]
