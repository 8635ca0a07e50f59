import resource

import pytest


@pytest.fixture
def nothing_happens(tmp_path, monkeypatch):
    """Run in an empty directory; afterwards nothing was executed there, and memory has not exploded."""
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert not (tmp_path / "canary").exists()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 400 * 2**10, f"{grown} KiB"
