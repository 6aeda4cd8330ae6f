"""Public sets by name: torchvision's files from a local server that drops connections, and their readers."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import pickle
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from torchvision import datasets

from cnnlab.data import DATASETS, ImageSet, SourceOptions, copies_in_test, load_images, named
from cnnlab.io.errors import CnnlabError

RNG = np.random.default_rng(0)
TRAIN, TEST = 6, 4


class Server(http.server.ThreadingHTTPServer):
    """A server of `files`. requests: (name, Range header) of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.break_after: int | None = None
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        name, wanted = self.path.lstrip("/"), self.headers.get("Range")
        self.server.requests.append((name, wanted))
        if name not in self.server.files:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = self.server.files[name][start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.break_after])


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def pictures(count: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, *shape), np.uint8)


def mnist_like(server: Server, patch: pytest.MonkeyPatch, name: str = "MNIST") -> None:
    made = {
        f"{part}-{kind}-ubyte.gz": gzip.compress(idx(array))
        for part, count in (("train", TRAIN), ("t10k", TEST))
        for kind, array in (
            ("images-idx3", pictures(count, 28, 28)),
            ("labels-idx1", np.arange(count, dtype=np.uint8)),
        )
    }
    server.files |= made
    patch.setattr(getattr(datasets, name), "mirrors", [f"{server.url}/gone/", f"{server.url}/"])
    patch.setattr(getattr(datasets, name), "resources", [(file, md5(content)) for file, content in made.items()])


def cifar(server: Server, patch: pytest.MonkeyPatch, name: str = "CIFAR10") -> None:
    cls = getattr(datasets, name)
    key = "labels" if name == "CIFAR10" else "fine_labels"
    parts = {
        file: pickle.dumps({"data": pictures(count, 3072), key: list(range(count))})
        for listed, count in ((cls.train_list, TRAIN), (cls.test_list, TEST))
        for file, _ in listed
    }
    parts[cls.meta["filename"]] = pickle.dumps({cls.meta["key"]: [f"class {k}" for k in range(10)]})
    content = tar({f"{cls.base_folder}/{file}": part for file, part in parts.items()})
    server.files[cls.filename] = content
    patch.setattr(cls, "url", f"{server.url}/{cls.filename}")
    patch.setattr(cls, "tgz_md5", md5(content))
    for listed in ("train_list", "test_list"):
        patch.setattr(cls, listed, [[file, md5(parts[file])] for file, _ in getattr(cls, listed)])
    patch.setattr(cls, "meta", {**cls.meta, "md5": md5(parts[cls.meta["filename"]])})


def svhn(server: Server, patch: pytest.MonkeyPatch) -> None:
    listed = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        out = io.BytesIO()
        labels = np.array([10, *range(1, count)], np.uint8)[:, None]
        scipy.io.savemat(out, {"X": pictures(count, 32, 32, 3).transpose(1, 2, 3, 0), "y": labels})
        name = f"{split}_32x32.mat"
        server.files[name] = out.getvalue()
        listed[split] = [f"{server.url}/{name}", name, md5(out.getvalue())]
    patch.setattr(datasets.SVHN, "split_list", listed)


def stl10(server: Server, patch: pytest.MonkeyPatch) -> None:
    cls = datasets.STL10
    files = {
        "train_X.bin": pictures(TRAIN, 3, 96, 96).tobytes(),
        "train_y.bin": np.arange(1, TRAIN + 1, dtype=np.uint8).tobytes(),
        "unlabeled_X.bin": pictures(2, 3, 96, 96).tobytes(),
        "test_X.bin": pictures(TEST, 3, 96, 96).tobytes(),
        "test_y.bin": np.arange(1, TEST + 1, dtype=np.uint8).tobytes(),
        "class_names.txt": "\n".join(f"class{k}" for k in range(10)).encode(),
    }
    content = tar({f"stl10_binary/{name}": part for name, part in files.items()})
    server.files[cls.filename] = content
    patch.setattr(cls, "url", f"{server.url}/{cls.filename}")
    patch.setattr(cls, "tgz_md5", md5(content))
    for listed in ("train_list", "test_list"):
        patch.setattr(cls, listed, [[name, md5(files[name])] for name, _ in getattr(cls, listed)])


def emnist(server: Server, patch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for part, first in (("letters", 1), ("balanced", 0)):
            for split, count in (("train", TRAIN), ("test", TEST)):
                labels = np.arange(first, first + count, dtype=np.uint8)
                stem = f"gzip/emnist-{part}-{split}"
                archive.writestr(f"{stem}-images-idx3-ubyte.gz", gzip.compress(idx(pictures(count, 28, 28))))
                archive.writestr(f"{stem}-labels-idx1-ubyte.gz", gzip.compress(idx(labels)))
    server.files["gzip.zip"] = out.getvalue()
    patch.setattr(datasets.EMNIST, "url", f"{server.url}/gzip.zip")
    patch.setattr(datasets.EMNIST, "md5", md5(out.getvalue()))


def load(name: str, folder: Path, split: str = "train") -> ImageSet:
    found = load_images(name, split, SourceOptions(data_dir=folder))
    assert found is not None
    return found


SETS = {
    "mnist": mnist_like,
    "kmnist": functools.partial(mnist_like, name="KMNIST"),
    "fashion-mnist": functools.partial(mnist_like, name="FashionMNIST"),
    "cifar10": cifar,
    "cifar100": functools.partial(cifar, name="CIFAR100"),
    "svhn": svhn,
    "stl10": stl10,
    "emnist:letters": emnist,
}


def torchvision_set(name: str, folder: Path, split: str) -> datasets.VisionDataset:
    train = {"train": split == "train"}
    cls, options = {
        "mnist": (datasets.MNIST, train),
        "kmnist": (datasets.KMNIST, train),
        "fashion-mnist": (datasets.FashionMNIST, train),
        "cifar10": (datasets.CIFAR10, train),
        "cifar100": (datasets.CIFAR100, train),
        "svhn": (datasets.SVHN, {"split": split}),
        "stl10": (datasets.STL10, {"split": split}),
        "emnist:letters": (datasets.EMNIST, {"split": "letters", **train}),
    }[name]
    return cls(str(folder), download=True, **options)


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_downloaded_once_and_matches_torchvision(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SETS[name](server, monkeypatch)
    assert not named.is_there(name, tmp_path)
    ours = {split: load(name, tmp_path, split) for split in ("train", "test")}
    assert load_images(name, "validation", SourceOptions(data_dir=tmp_path)) is None
    assert named.is_there(name, tmp_path)
    assert not any(named.files(name, tmp_path).values())
    assert copies_in_test(name, ours["train"], SourceOptions(data_dir=tmp_path)) == 0
    asked = [file for file, _ in server.requests if not file.startswith("gone/")]
    assert sorted(asked) == sorted(set(asked))  # each once
    for split, found in ours.items():
        dataset = torchvision_set(name, tmp_path, split)  # reads our files, but downloads any that are missing
        assert len(found) == len(dataset)
        for pixels, label, (image, target) in zip(found.images, found.labels.tolist(), dataset, strict=True):
            expected = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
            if name == "emnist:letters":
                expected, target = expected.transpose(0, 2, 1), target - 1
            np.testing.assert_array_equal(pixels.numpy(), expected)
            assert label == target
        if name == "emnist:letters":
            assert found.classes == list("abcdefghijklmnopqrstuvwxyz")
        elif name in ("mnist", "svhn"):
            assert found.classes == list("0123456789")
        else:
            assert found.classes == dataset.classes


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn", "stl10", "emnist:letters"])
def test_a_truncated_download_is_resumed_and_a_changed_file_refused(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SETS[name](server, monkeypatch)
    first = named.NAMED[name].files("train")[0]
    packed = tmp_path / first.packed
    server.break_after = 1000
    with pytest.raises(CnnlabError, match=re.escape(packed.name)) as caught:
        load(name, tmp_path)
    assert "\n" not in str(caught.value)
    assert packed.with_name(packed.name + ".part").stat().st_size == 1000
    server.break_after = None
    server.requests.clear()
    found = load(name, tmp_path)
    assert (packed.name, "bytes=1000-") in server.requests
    assert len(found) in (TRAIN, 5 * TRAIN)

    # the error names a file that was truncated or changed; the file stays, so that the user can look at it
    path = tmp_path / first.path if first.member else packed
    whole = path.read_bytes()
    for changed in (whole[:-10], whole[:-1] + bytes((whole[-1] ^ 1,))):
        path.write_bytes(changed)
        if not first.md5 and first.member and len(changed) == len(whole):
            continue  # EMNIST publishes no checksums of its members
        with pytest.raises(CnnlabError, match=rf"{re.escape(path.name)} \({len(changed)} bytes\).*official"):
            load(name, tmp_path)
        assert any(named.files(name, tmp_path).values()) or not first.md5
        assert path.read_bytes() == changed
    path.unlink()
    server.requests.clear()
    if first.member:
        assert load(name, tmp_path).fingerprint() == found.fingerprint()  # from the archive again
        assert server.requests == []


def test_a_download_with_a_wrong_checksum_is_not_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar(server, monkeypatch)
    server.files["cifar-10-python.tar.gz"] = tar({"cifar-10-batches-py/data_batch_1": b"pickle"})
    with pytest.raises(CnnlabError, match="checksum"):
        load("cifar10", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_the_users_own_server_is_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar(server, monkeypatch)
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setenv("CNNLAB_CIFAR10_URL", f"{server.url}/")
    assert len(load("cifar10", tmp_path)) == 5 * TRAIN


def test_unpacked_files_are_found_without_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pictures(count, 28, 28)))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8)))
    monkeypatch.setenv("CNNLAB_KMNIST_URL", "http://127.0.0.1:9")
    assert len(load("kmnist", tmp_path)) == TRAIN
    labels = raw / "train-labels-idx1-ubyte"
    for content in (
        idx(np.arange(TRAIN + 1, dtype=np.uint8)), idx(np.full(TRAIN, 10, np.uint8)), labels.read_bytes()[:-1],
        labels.read_bytes() + b"x", b"", bytes(100), idx(np.zeros((TRAIN, 1), np.uint8)),
    ):  # fmt: skip
        labels.write_bytes(content)
        with pytest.raises(CnnlabError, match=r"train-labels-idx1-ubyte .*bytes.*official"):
            load("kmnist", tmp_path)


PLACES = [
    "FashionMNIST/raw/{}", "FashionMNIST/{}", "fashion-mnist/{}", "fashion_mnist/raw/{}", "Fashion MNIST/{}", "fashion/{}",
    "{}", "raw/{}", "FashionMNIST/{}/{}",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", ["unpacked", "kaggle", "official", "named .gz", "packed again", "not named .gz"])
def test_mnist_files_in_other_places_and_under_other_names_are_found(
    place: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {
        f"{part}-{kind}-ubyte": idx(array)
        for part, count in (("train", TRAIN), ("t10k", TEST))
        for kind, array in (
            ("images-idx3", pictures(count, 28, 28)),
            ("labels-idx1", np.arange(count, dtype=np.uint8)),
        )
    }
    official = {name: gzip.compress(content, mtime=1) for name, content in parts.items()}
    for name, content in parts.items():
        monkeypatch.setitem(named._UNPACKED, f"FashionMNIST/raw/{name}", md5(content))
    resources = [(f"{name}.gz", md5(content)) for name, content in official.items()]
    monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
    monkeypatch.setenv("CNNLAB_FASHION_MNIST_URL", "http://127.0.0.1:9")
    made = {}
    for name, content in parts.items():
        spelled = name.replace("-idx", ".idx") if way == "kaggle" else name
        spelled += ".gz" if way in ("official", "named .gz", "packed again") else ""
        made[name] = tmp_path / place.format(spelled, spelled)
        made[name].parent.mkdir(parents=True, exist_ok=True)
        again = gzip.compress(content, 1, mtime=2) if way == "packed again" else content
        made[name].write_bytes(official[name] if way in ("official", "not named .gz") else again)
    assert named.is_there("fashion-mnist", tmp_path)
    assert named.files("fashion-mnist", tmp_path) == dict.fromkeys(made.values(), "")
    assert load("fashion-mnist", tmp_path).labels.tolist() == list(range(TRAIN))
    assert not named.is_there("mnist", tmp_path)  # the file names are the same, the contents are not

    made["train-labels-idx1-ubyte"].write_bytes(idx(np.zeros(TRAIN, np.uint8)))  # from another set, or damaged
    if place in ("{}", "raw/{}"):
        assert not named.is_there("fashion-mnist", tmp_path)
    else:
        with pytest.raises(CnnlabError, match=rf"{made['train-labels-idx1-ubyte']} .*official"):
            load("fashion-mnist", tmp_path)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("MNIST", r"'MNIST'.*\bmnist\b"),
        ("CIFAR-10", r"'CIFAR-10'.*\bcifar10\b"),
        ("emnist", "emnist .*emnist:letters"),
        ("emnist:letter", "'emnist:letter'.*emnist:letters"),
    ],
)
def test_unknown_names_get_a_suggestion(source: str, words: str) -> None:
    with pytest.raises(CnnlabError, match=words):
        load_images(source, "train")


def test_every_name_has_a_recipe_and_a_description() -> None:
    from cnnlab.data import DESCRIPTIONS
    from cnnlab.defaults import choose_recipe

    for name in DATASETS:
        assert choose_recipe(data=name).name in ("digits", "fashion-mnist", "images")
        assert name in DESCRIPTIONS or name.startswith("emnist:")
