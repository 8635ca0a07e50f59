"""Parts of an evaluation: kept, checked, completed in any order."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.attack.parts import REQUIRED, Part, PartialStore, gaps, joined


def make_part(start, stop):
    rows = torch.arange(start, stop)
    columns = {name: rows.clone() for name in REQUIRED} | {"broken_by": rows % 3 - 1}
    return Part(start, stop, columns, ("clean", "pgd"), 0.5, ("odd",))


def test_parts_are_read_back_in_order(tmp_path):
    store = PartialStore(tmp_path / "parts" / "pgd")
    assert store.read(10) == []
    for start, stop in ((6, 10), (0, 4), (4, 6)):
        store.write(make_part(start, stop))
    parts = store.read(10)
    assert [(part.start, part.stop) for part in parts] == [(0, 4), (4, 6), (6, 10)]
    whole = joined(parts[::-1])
    assert (whole.start, whole.stop, whole.seconds) == (0, 10, 1.5)
    assert whole.columns["queries"].tolist() == list(range(10))
    assert whole.broken_by[:4] == (None, "clean", "pgd", None)
    assert whole.warnings == ("odd",)
    store.remove()
    assert list(tmp_path.iterdir()) == []


def test_damaged_parts_are_done_again(tmp_path):
    store = PartialStore(tmp_path / "pgd")
    for start in range(0, 10, 2):
        store.write(make_part(start, start + 2))
    files = sorted(store.folder.iterdir())
    files[0].write_bytes(files[0].read_bytes()[:-3])
    files[1].write_bytes(b"")
    files[2].rename(store.folder / "rows-00000004-00000009.safetensors")
    store.write(Part(6, 8, {"success": torch.zeros(2)}, (), 0.0))
    (store.folder / "rows-x.safetensors").write_text("?")
    assert [(part.start, part.stop) for part in store.read(10)] == [(8, 10)]
    assert store.read(9) == []
    assert PartialStore(store.folder, (*REQUIRED, "adversarial")).read(10) == []


def test_states_survive_unless_damaged(tmp_path):
    store = PartialStore(tmp_path / "pgd")
    assert store.read_state() is None
    store.write_state({"state": {"stage": 2, "rows": torch.arange(3)}, "seconds": 1.5})
    state = store.read_state()
    assert state["seconds"] == 1.5
    assert state["state"]["rows"].tolist() == [0, 1, 2]
    path = store.folder / "state.pt"
    content = path.read_bytes()
    for damaged in (content[:-40], b"", b"pickle"):
        path.write_bytes(damaged)
        assert store.read_state() is None


@given(st.integers(1, 60), st.integers(1, 20), st.lists(st.integers(0, 60), max_size=6))
def test_gaps_cover_the_rest_exactly(n, size, cuts):
    edges = sorted({min(cut, n) for cut in cuts})
    parts = [make_part(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    done = [row for part in parts for row in range(part.start, part.stop)]
    slices = list(gaps(parts, n, size))
    assert all(0 < piece.stop - piece.start <= size for piece in slices)
    assert sorted(done + [row for piece in slices for row in range(piece.start, piece.stop)]) == list(
        range(n)
    )
