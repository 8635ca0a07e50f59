import pytest


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    """Nothing is read from, or written to, the user's own folders."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
