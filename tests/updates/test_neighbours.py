"""Ranges of neighbouring variables."""

from hypothesis import given
from hypothesis import strategies as st

from keras_adamax.backends.variable_groups import groups


@given(
    sizes=st.lists(st.integers(0, 50), max_size=20), limit=st.integers(1, 100)
)
def test_groups_are_whole_and_end_at_the_limit(sizes, limit):
    found = groups(sizes, limit)
    together = [sizes[start:end] for start, end in found]
    assert sum(together, []) == sizes
    for group in together[:-1]:
        assert sum(group) >= limit
    for group in together:
        assert group and sum(group[:-1]) < limit
