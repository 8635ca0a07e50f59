import functools
import http.server
import sys
import threading
import types

import pytest
import torchvision

from envs.datasets import load_dataset, load_splits
from envs.errors import InputError
from envs.lazy_imports import import_torchvision
from tests.support.data_files import (
    list_sums,
    md5,
    mnist_arrays,
    same_images,
    tar_gz,
    write_cifar10,
    write_mnist,
)

# Downloads, from a server on this machine


@pytest.fixture
def server(tmp_path):
    """Serve the files of a folder; yields the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    ) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def serve_mnist(server, tmp_path, monkeypatch):
    folder, address = server
    raw = write_mnist(tmp_path / "original") / "MNIST/raw"
    for file in raw.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    resources = [(name, md5(folder / name)) for name, _ in torchvision.datasets.MNIST.resources]
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [address])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    return resources


def serve_cifar10(server, tmp_path, monkeypatch):
    folder, address = server
    original = write_cifar10(tmp_path / "original") / "cifar-10-batches-py"
    list_sums(monkeypatch, torchvision.datasets.CIFAR10, original)
    archive = folder / "cifar-10-python.tar.gz"
    archive.write_bytes(tar_gz(original))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", address + archive.name)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", md5(archive))
    return archive


def everything(root):
    return [path for path in root.rglob("*") if not path.name.endswith(".lock")]


def test_mnist_is_downloaded_once(server, tmp_path, monkeypatch, caplog):
    serve_mnist(server, tmp_path, monkeypatch)
    root = tmp_path / "new/root"
    splits = load_splits("mnist", data_root=root)
    assert same_images(splits[:2], *mnist_arrays()["train"])
    assert f"downloading mnist to {root}" in caplog.text
    assert not list(root.glob(".*.tmp"))
    torchvision.datasets.MNIST(root)  # reads what is left there
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    assert load_dataset("mnist", data_root=root).fingerprint == splits.train.fingerprint


def test_cifar10_is_downloaded_once(server, tmp_path, monkeypatch):
    serve_cifar10(server, tmp_path, monkeypatch)
    root = tmp_path / "root"
    assert [len(split) for split in load_splits("cifar10", data_root=root)] == [220, 30, 20]
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/")
    assert len(load_dataset("cifar10", "test", data_root=root)) == 20
    assert sorted(path.name for path in root.iterdir() if not path.name.startswith(".")) == [
        "cifar-10-batches-py",
        "decoded",
    ]


def test_a_wrong_checksum_leaves_nothing(server, tmp_path, monkeypatch):
    resources = serve_mnist(server, tmp_path, monkeypatch)
    changed = server[0] / resources[2][0]
    changed.write_bytes(changed.read_bytes()[:-1])
    root = tmp_path / "root"
    with pytest.raises(
        InputError, match=r"cannot download mnist to .*File not found or corrupted.*put train-images"
    ) as caught:
        load_splits("mnist", data_root=root)
    assert "\n" not in str(caught.value)
    assert everything(root) == []


def test_a_wrong_archive_leaves_nothing(server, tmp_path, monkeypatch):
    archive = serve_cifar10(server, tmp_path, monkeypatch)
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cannot download cifar10 .*corrupted"):
        load_splits("cifar10", data_root=tmp_path / "root")
    assert everything(tmp_path / "root") == []


def test_an_archive_without_the_files_leaves_nothing(server, tmp_path, monkeypatch):
    archive = serve_cifar10(server, tmp_path, monkeypatch)
    (tmp_path / "original/cifar-10-batches-py/test_batch").unlink()
    archive.write_bytes(tar_gz(tmp_path / "original/cifar-10-batches-py"))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", md5(archive))
    with pytest.raises(InputError, match=r"the download holds no cifar-10-batches-py/test_batch"):
        load_splits("cifar10", data_root=tmp_path / "root")
    assert everything(tmp_path / "root") == []


@pytest.mark.parametrize("name", ["mnist", "cifar10", "stl10"])
def test_no_network(tmp_path, monkeypatch, name):
    closed = "http://127.0.0.1:9/"
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [closed])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", closed + "x.tar.gz")
    monkeypatch.setattr(torchvision.datasets.STL10, "url", closed + "x.tar.gz")
    with pytest.raises(InputError, match=rf"cannot download {name} .*(refused|111).*--data-root"):
        load_splits(name, data_root=tmp_path / "root")
    assert everything(tmp_path / "root") == []


def test_downloads_do_not_go_to_a_read_only_root(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(InputError, match=r"cannot download cifar100 .*read-only.*--data-root"):
            load_dataset("cifar100", data_root=tmp_path)
    finally:
        tmp_path.chmod(0o755)


# torchvision itself


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::nms does not exist"),
        ImportError("libtorch.so: undefined symbol: _ZN3c10"),
        OSError("libcudart.so.13: cannot open shared object file"),
        AttributeError("partially initialized module 'torchvision' has no attribute 'extension'"),
    ],
)
def test_a_torchvision_of_another_torch_names_the_remedy(monkeypatch, error):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("torchvision"):
                raise error
            return None

    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(InputError, match="pip install --force-reinstall torch torchvision") as caught:
        import_torchvision("datasets")
    assert str(error) in str(caught.value)
    with pytest.raises(InputError, match="--force-reinstall"):
        import_torchvision()


def test_torchvision_is_imported():
    assert import_torchvision() is torchvision
    assert isinstance(import_torchvision("models"), types.ModuleType)
