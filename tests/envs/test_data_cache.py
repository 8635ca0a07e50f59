import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch

from envs.data import cache
from envs.data.source import Source
from envs.datasets import default_root, load_dataset, load_splits
from envs.errors import InputError
from tests.support.data_files import SPLITS, Counted


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch):
    monkeypatch.delenv("LABELBANDIT_DATA", raising=False)


def entry_of(home):
    [entry] = [path for path in home.iterdir() if not path.name.startswith(".")]
    return entry


def test_decodes_once_then_maps_the_copy(tmp_path):
    made = Counted()
    first = cache.load(made.source, [tmp_path], SPLITS)
    again = cache.load(made.source, [tmp_path], ("val",))
    assert made.calls == 1
    assert made.matches(first)
    assert made.matches(again)
    assert list(again.splits) == ["val"]
    assert {path.name for path in entry_of(tmp_path).iterdir()} == {
        "entry.json",
        *(f"{split}-{what}.npy" for split in SPLITS for what in ("images", "labels")),
    }


def test_another_stamp_replaces_the_entry(tmp_path):
    old, new = Counted("1"), Counted("2", seed=1)
    before = cache.load(old.source, [tmp_path], SPLITS)
    after = cache.load(new.source, [tmp_path], SPLITS)
    assert new.calls == 1
    assert new.matches(after)
    assert old.matches(before), "what is mapped stays as it was"
    assert entry_of(tmp_path)


def damage_pixels(entry):
    with (entry / "train-images.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def cut_pixels(entry):
    with (entry / "val-images.npy").open("r+b") as file:
        file.truncate(200)


def change_labels(entry):
    labels = np.load(entry / "test-labels.npy")
    np.save(entry / "test-labels.npy", 1 - labels)


def pickled_labels(entry):
    np.save(entry / "test-labels.npy", np.array([{}], dtype=object), allow_pickle=True)


def change_entry(**changes):
    def change(entry):
        described = json.loads((entry / "entry.json").read_text())
        (entry / "entry.json").write_text(json.dumps(described | changes))

    return change


@pytest.mark.parametrize(
    "damage",
    [
        damage_pixels,
        cut_pixels,
        change_labels,
        pickled_labels,
        lambda entry: (entry / "train-images.npy").write_bytes(b""),
        lambda entry: (entry / "train-images.npy").unlink(),
        lambda entry: (entry / "entry.json").write_text('{"format": 1, '),
        lambda entry: (entry / "entry.json").write_bytes(b"\xff" * 100),
        lambda entry: (entry / "entry.json").write_text("[]"),
        change_entry(classes=["a", "x"]),
        change_entry(splits={}),
        change_entry(format=99),
    ],
)
def test_damaged_entries_are_rebuilt(tmp_path, damage):
    made = Counted()
    cache.load(made.source, [tmp_path], SPLITS)
    damage(entry_of(tmp_path))
    assert made.matches(cache.load(made.source, [tmp_path], SPLITS))
    assert made.calls == 2
    cache.load(made.source, [tmp_path], SPLITS)
    assert made.calls == 2


def test_damage_is_told(tmp_path, caplog):
    made = Counted()
    cache.load(made.source, [tmp_path], SPLITS)
    damage_pixels(entry_of(tmp_path))
    cache.load(made.source, [tmp_path], SPLITS)
    assert [record.getMessage() for record in caplog.records] == [
        f"the decoded copy in {entry_of(tmp_path)} is damaged (the checksum of train differs); decoding the data again"
    ]


def test_large_entries_are_checked_in_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "WHOLE_CHECK", 100)
    made = Counted()
    cache.load(made.source, [tmp_path], SPLITS)
    damage_pixels(entry_of(tmp_path))
    assert made.matches(cache.load(made.source, [tmp_path], SPLITS))
    assert made.calls == 2


def test_writing_to_loaded_images_changes_neither_the_copy_nor_other_loads(tmp_path):
    made = Counted()
    first = cache.load(made.source, [tmp_path], SPLITS)
    torch.from_numpy(first.splits["train"].images).zero_()
    assert made.matches(cache.load(made.source, [tmp_path], SPLITS))
    assert made.calls == 1


def test_a_failed_decode_leaves_nothing(tmp_path):
    def fail(allocate):
        allocate("train", (5, 1, 4, 4))[:] = 1
        raise InputError("bad file")

    with pytest.raises(InputError, match="bad file"):
        cache.load(Source("made", "made", "1", fail), [tmp_path / "home"], SPLITS)
    assert [path.name for path in (tmp_path / "home").iterdir() if not path.name.endswith(".lock")] == []


def test_read_only_root_falls_back_to_the_users_cache(tmp_path, caplog):
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir()
    root.chmod(0o555)
    made = Counted()
    assert made.matches(cache.load(made.source, [root / "decoded", other], SPLITS))
    assert list(root.iterdir()) == []
    assert entry_of(other)
    [record] = caplog.records
    assert record.getMessage() == (
        f"the decoded copy of made goes to {other}: [Errno 13] {root} is read-only"
    )
    caplog.clear()
    cache.load(made.source, [root / "decoded", other], SPLITS)
    assert made.calls == 1
    assert not caplog.records


def test_without_any_place_nothing_is_kept(tmp_path, caplog):
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o555)
    made = Counted()
    assert made.matches(cache.load(made.source, [root / "a", root / "b"], SPLITS))
    assert made.matches(cache.load(made.source, [root / "a", root / "b"], SPLITS))
    assert made.calls == 2
    assert "no decoded copy of made is kept" in caplog.text
    assert list(root.iterdir()) == []


def test_full_disk_falls_back_and_cleans_up(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    made = Counted()
    assert made.matches(cache.load(made.source, [tmp_path / "home"], SPLITS))
    assert "No space left on device" in caplog.text
    assert [path for path in (tmp_path / "home").iterdir() if not path.name.endswith(".lock")] == []


def test_images_larger_than_memory_need_a_place(monkeypatch):
    def decode(allocate):
        allocate("train", (1 << 40, 3, 224, 224))
        raise AssertionError("must not come this far")

    with pytest.raises(InputError, match=r"train takes .* GiB, this machine has .*--data-root"):
        cache.load(Source("made", "made", "1", decode), [], SPLITS)


def run_forked(count, work, *arguments):
    """Run ``work`` in processes that start at once; return their exit codes."""
    context = multiprocessing.get_context("fork")  # they start in no time, with everything imported
    workers = [context.Process(target=work, args=arguments) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    return [worker.exitcode for worker in workers]


def decode_slowly(where):
    made = Counted()

    def slowly(allocate):
        (where / f"decoded-{os.getpid()}").touch()
        time.sleep(0.3)
        return made.decode(allocate)

    assert made.matches(cache.load(Source("made", "made", "1", slowly), [where / "home"], SPLITS))


def die_while_decoding(home):
    def die(allocate):
        allocate("train", (5, 1, 4, 4))
        os.kill(os.getpid(), signal.SIGKILL)

    cache.load(Source("made", "made", "1", die), [home], SPLITS)


def test_processes_that_start_together_decode_once(tmp_path):
    assert run_forked(4, decode_slowly, tmp_path) == [0] * 4
    assert len(list(tmp_path.glob("decoded-*"))) == 1


def test_a_killed_build_is_cleaned_up_by_the_next(tmp_path):
    assert run_forked(1, die_while_decoding, tmp_path) == [-signal.SIGKILL]
    assert list(tmp_path.glob(".*.tmp"))
    made = Counted()
    assert made.matches(cache.load(made.source, [tmp_path], SPLITS))
    assert not list(tmp_path.glob(".*.tmp"))


def test_data_root_comes_from_argument_then_environment_then_home(tmp_path, monkeypatch):
    assert default_root() == tmp_path / "user/.cache/labelbandit/data"
    monkeypatch.setenv("LABELBANDIT_DATA", str(tmp_path / "chosen"))
    assert default_root() == tmp_path / "chosen"
    path = tmp_path / "made.npz"
    np.savez(path, images=np.zeros((30, 4, 4), np.uint8), labels=np.arange(30) % 3)
    load_dataset(f"npz:{path}")
    assert entry_of(tmp_path / "chosen/decoded")
    load_dataset(f"npz:{path}", data_root=tmp_path / "root")
    assert entry_of(tmp_path / "root/decoded")


def test_digits_need_no_copy(tmp_path):
    load_splits("digits", data_root=tmp_path / "root")
    assert not (tmp_path / "root").exists()
