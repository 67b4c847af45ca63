"""Damaged files are refused, or give what they gave before."""

import pytest

from tests import fuzz_files
from tests.support import repeated


@pytest.mark.parametrize("subject", fuzz_files.SUBJECTS)
@pytest.mark.parametrize("seeds", [range(30), *repeated(range(30, 300))])
def test_at_random(subject, seeds):
    assert fuzz_files.run(subject(), seeds, None) == []


def test_wrong_content_is_found(monkeypatch):
    """Where a checksum is not looked at, the fuzzer says so."""

    class Trusting(fuzz_files.Backup):
        def load(self, folder):
            (path,) = fuzz_files.Generations(folder).paths()
            return {p.name: p.read_bytes() for p in path.iterdir()}

    found = fuzz_files.run(Trusting(), range(20), None)
    # Some mutations change nothing.
    assert len(found) > 10
    assert all("other content, without an error" in text for text in found)
