"""The colours can be told apart by everybody, and in print."""

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex, to_rgb

from keras_adamax import plots
from keras_adamax.plots import _marks
from tests.plots.synthetic import SMALL, as_records, large_paths, make_rows

# Okabe & Ito, "Color Universal Design", 2008.
OKABE_ITO = {
    "#000000",
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#f0e442",
    "#0072b2",
    "#d55e00",
    "#cc79a7",
}
FIGURES = {
    "clip rates": plots.plot_clip_rates,
    "weight changes": plots.plot_weight_changes,
}


def lightness(colors):
    """CIE L* of sRGB colours: 0 is black and 100 white."""
    rgb = np.asarray(colors)[..., :3]
    linear = np.where(
        rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4
    )
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(
        luminance > (6 / 29) ** 3,
        116 * np.cbrt(luminance) - 16,
        luminance * (29 / 3) ** 3,
    )


def test_lightness_of_known_colours():
    grey = np.asarray([to_rgb(c) for c in ("black", "#777777", "white")])
    assert lightness(grey) == pytest.approx([0, 50.03, 100], abs=0.01)


@pytest.mark.parametrize("name", FIGURES)
def test_heat_maps_become_lighter_all_the_way(name):
    figure = FIGURES[name](as_records(make_rows(large_paths())))
    meshes = [
        mesh
        for ax in figure.axes
        for mesh in ax.collections
        if isinstance(mesh, QuadMesh)
    ]
    assert meshes
    for mesh in meshes:
        levels = lightness(mesh.cmap(np.linspace(0, 1, 256)))
        assert np.diff(levels).min() > 0
        assert levels[-1] - levels[0] > 70


@pytest.mark.parametrize("name", FIGURES)
def test_lines_have_the_palette(name):
    figure = FIGURES[name](as_records(make_rows(SMALL)))
    colors = {
        to_hex(line.get_color())
        for ax in figure.axes
        for line in ax.lines
        if line.get_gid()
    }
    assert colors and colors <= OKABE_ITO
    if name == "weight changes":  # rates of variables are in a heat map
        assert len(colors) >= len(SMALL)


def test_styles_differ_in_more_than_colour():
    for part in ("color", "dashes", "marker"):
        values = {getattr(style, part) for style in _marks.STYLES}
        assert len(values) == len(_marks.STYLES)
    assert {s.color.lower() for s in _marks.STYLES} < OKABE_ITO
