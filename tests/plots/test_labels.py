import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_adamax.plots._labels import common_folder, label_rows, shorten
from tests.plots.synthetic import SMALL, flat_paths, large_paths

names = st.text("abc_1", min_size=1, max_size=12)
paths = st.lists(names, min_size=1, max_size=6).map("/".join)


@pytest.mark.parametrize(
    ("given_paths", "folder"),
    [
        (SMALL, "sequential/"),
        (("a/b/c", "a/b/d"), "a/b/"),
        (("ab/c", "ad/c"), ""),
        # A variable's own name is never part of it.
        (("a/b", "a/b/c"), "a/"),
        (("a/b/c",), ""),
        ((), ""),
    ],
)
def test_common_folder(given_paths, folder):
    assert common_folder(given_paths) == folder


def test_short_paths_stay():
    assert shorten(SMALL, 50) == list(SMALL)


def test_long_paths_lose_their_middle():
    layers = [
        f"model/encoder_layer_{i}/self_attention/query/kernel" for i in (1, 2)
    ]
    assert shorten(layers, 40) == [
        "model/encoder_layer_1/\N{HORIZONTAL ELLIPSIS}/query/kernel",
        "model/encoder_layer_2/\N{HORIZONTAL ELLIPSIS}/query/kernel",
    ]


@pytest.mark.parametrize("width", [24, 38])
def test_shortened_paths_of_a_deep_model_are_unambiguous(width):
    full = large_paths()
    short = shorten(full, width)
    assert len(set(short)) == len(full)
    assert max(map(len, short)) <= width
    for path, label in zip(full, short, strict=True):
        head, _, tail = label.partition("\N{HORIZONTAL ELLIPSIS}")
        if "#" in label or head == label:
            continue
        fitting = [
            other
            for other in full
            if other.startswith(head) and other.endswith(tail)
        ]
        assert fitting == [path]


@settings(max_examples=100, deadline=None)
@given(st.lists(paths, max_size=20, unique=True), st.integers(16, 40))
def test_shortened_paths_are_unique_and_fit(given_paths, width):
    short = shorten(given_paths, width)
    assert len(set(short)) == len(given_paths)
    assert all(len(label) <= width for label in short)
    assert all(
        label == path
        for label, path in zip(short, given_paths, strict=True)
        if len(path) <= width
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(paths, min_size=1, max_size=60, unique=True), st.floats(0.1, 20)
)
def test_labels_keep_their_distance(given_paths, spacing):
    bands, _ = label_rows(given_paths, spacing, 30)
    assert bands and bands[0].first == 0
    assert bands[-1].last < len(given_paths)
    for before, after in zip(bands, bands[1:], strict=False):
        assert after.center - before.center >= spacing
        assert after.first > before.last
    assert all(band.label for band in bands)


def test_every_variable_has_a_name_where_there_is_room():
    bands, what = label_rows(SMALL, 0.9, 38)
    assert what == "variable"
    assert [band.label for band in bands] == [
        path.removeprefix("sequential/") for path in SMALL
    ]


def test_layers_where_there_is_less():
    full = large_paths()
    bands, what = label_rows(full, 4.0, 38)
    assert what == "variables by layer"
    assert [band.label for band in bands] == [
        "token_and_position_embedding",
        *(f"transformer_encoder_{block}" for block in range(13)),
    ]
    for band in bands:
        inside = full[band.first : band.last + 1]
        assert all(f"/{band.label}/" in path for path in inside)


def test_some_layers_where_there_is_no_hierarchy():
    bands, what = label_rows(flat_paths(), 3.0, 38)
    assert what == "layers (some labelled)"
    assert [band.label for band in bands[:3]] == ["dense_0", "dense_2"] + [
        "dense_4"
    ]
    bands, what = label_rows([f"w{i}" for i in range(100)], 3.0, 38)
    assert what == "variables (some labelled)"
    assert [band.first for band in bands] == list(range(0, 100, 3))
