"""`torchvision:NAME` and `hf:NAME`, without internet: local servers and folders."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_named import Server, server  # noqa: F401 - a fixture
from torchvision import datasets

from cnnlab.data import ImageSet, SourceOptions, absolute, copies_in_test, load_images
from cnnlab.data.hub import _texts
from cnnlab.data.survey import survey
from cnnlab.data.torchvision_sets import SETS, _classes, _labels
from cnnlab.io.errors import CnnlabError

RNG = np.random.default_rng(0)


def load(source: str, folder: Path, split: str = "train", **options: object) -> ImageSet:
    found = load_images(source, split, SourceOptions(data_dir=folder, **options))  # type: ignore[arg-type]
    assert found is not None
    return found


def picture(size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (*size, 3), np.uint8)).save(out, kind)
    return out.getvalue()


# torchvision


def test_every_set_is_a_class_that_accepts_its_arguments() -> None:
    import inspect

    for name, splits in SETS.items():
        known = inspect.signature(getattr(datasets, name)).parameters
        for arguments in splits.values():
            assert arguments.keys() <= known.keys(), name


def eurosat(server: Server, patch: pytest.MonkeyPatch) -> None:  # noqa: F811
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("Forest", "River"):
            for i in range(3):
                archive.writestr(f"2750/{name}/{name}_{i}.jpg", picture(kind="JPEG"))
    server.files["EuroSAT.zip"] = out.getvalue()
    real = datasets.eurosat.download_and_extract_archive

    def from_here(url: str, download_root: str, **options: object) -> None:
        real(f"{server.url}/EuroSAT.zip", download_root, md5=hashlib.md5(out.getvalue()).hexdigest())

    patch.setattr(datasets.eurosat, "download_and_extract_archive", from_here)


def test_torchvision_sets_are_downloaded_by_cnnlab(
    server: Server,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eurosat(server, monkeypatch)
    server.break_after = 500
    with pytest.raises(CnnlabError, match=r"EuroSAT\.zip"):
        load("torchvision:EuroSAT", tmp_path)
    server.break_after = None
    found = load("torchvision:EuroSAT", tmp_path)
    assert [wanted for _, wanted in server.requests] == [None, "bytes=500-"]
    theirs = datasets.EuroSAT(str(tmp_path / "torchvision" / "EuroSAT"))
    assert found.classes == theirs.classes == ["Forest", "River"]
    for pixels, label, (image, target) in zip(found.images, found.labels.tolist(), theirs, strict=True):
        np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(image))
        assert label == target
    assert sorted(path.name for path in (tmp_path / "torchvision").iterdir() if path.is_dir()) == ["EuroSAT"]
    assert load_images("torchvision:EuroSAT", "test", SourceOptions(data_dir=tmp_path)) is None
    load("torchvision:EuroSAT", tmp_path)
    assert len(server.requests) == 2  # downloaded once only
    (tmp_path / "own").mkdir()
    (tmp_path / "torchvision" / "EuroSAT" / "eurosat").rename(tmp_path / "own" / "eurosat")
    # Found where torchvision itself stores it.
    assert load("torchvision:EuroSAT", tmp_path / "own").fingerprint() == found.fingerprint()


def test_without_hard_links_files_are_copied(
    server: Server,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    eurosat(server, monkeypatch)
    monkeypatch.setattr("os.link", link)
    assert len(load("torchvision:EuroSAT", tmp_path)) == 6


def test_splits_may_lack_labels_and_classes_are_ordered_by_number() -> None:
    built = {}
    for split in ("train", "test"):
        built[split] = datasets.FER2013.__new__(datasets.FER2013)
        built[split]._samples = [(None, 1 if split == "train" else None)] * 3
    assert _labels(built["train"]) == [1, 1, 1]
    assert _labels(built["test"]) is None
    people = datasets.LFWPeople.__new__(datasets.LFWPeople)
    people.class_to_idx = {"Ann": 1, "Bob": 0}
    assert _classes(people, 2) == ["Bob", "Ann"]


def test_a_set_that_generates_its_images_is_read(tmp_path: Path) -> None:
    found = load("torchvision:FakeData", tmp_path)
    theirs = datasets.FakeData(size=50, image_size=(3, 32, 32))
    np.testing.assert_array_equal(found.images[7].permute(1, 2, 0).numpy(), np.asarray(theirs[7][0]))
    assert found.labels[:5].tolist() == [theirs[i][1] for i in range(5)]
    assert found.classes == [str(k) for k in range(10)]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("torchvision:Flower102", "'Flower102'.*Flowers102"),
        ("torchvision:CocoDetection", "torchvision:CocoDetection .*EuroSAT"),
        ("torchvision:EMNIST", "emnist:balanced"),
        ("torchvision:UCF101", "torchvision:UCF101 .*EuroSAT"),
        ("torchvision:", "torchvision:NAME"),
        ("torchvision:ImageNet", "torchvision:ImageNet.*files"),
        ("hf:", "hf:NAME"),
        ("hf:./nowhere", r"hf:\./nowhere"),
        ("hug:x", "'hug:x'"),
    ],
)
def test_faults_are_one_line(tmp_path: Path, source: str, words: str) -> None:
    with pytest.raises(CnnlabError, match=words) as caught:
        load(source, tmp_path)
    assert "\n" not in str(caught.value)


# Hugging Face


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two sets, one of class folders and one of Parquet files."""
    library = pytest.importorskip("datasets")
    library.disable_progress_bars()
    root = tmp_path_factory.mktemp("hub")
    for split, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            (root / "folders" / split / name).mkdir(parents=True)
            for i in range(count):
                (root / "folders" / split / name / f"{i}.png").write_bytes(picture())
    table = {
        "img": [{"bytes": picture((8, 10)), "path": None} for _ in range(6)],
        "fine": [0, 1, 2, 0, 1, 2],
        "coarse": [0, 1, 0, 1, 0, -1],
        "species": ["ant", "bee", "ant", "bee", "ant", None],
        "patient": ["p", "q", "p", "q", "p", "q"],
    }
    features = library.Features({
        "img": library.Image(), "fine": library.ClassLabel(names=["x", "y", "z"]),
        "coarse": library.ClassLabel(names=["even", "odd"]), "species": library.Value("string"),
        "patient": library.Value("string"),
    })  # fmt: skip
    made = library.Dataset.from_dict(table, features)
    library.DatasetDict({"train": made, "validation": made}).save_to_disk(str(root / "saved"))
    (root / "parquet").mkdir()
    made.to_parquet(str(root / "parquet" / "train.parquet"))
    return root


def test_a_set_of_class_folders_is_read(hub: Path, tmp_path: Path) -> None:
    source = f"hf:{hub / 'folders'}"
    train, test = load(source, tmp_path), load(source, tmp_path, "test")
    assert train.classes == ["cat", "dog"]
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    np.testing.assert_array_equal(
        train.images[5].permute(1, 2, 0).numpy(), np.asarray(Image.open(hub / "folders" / "train" / "dog" / "1.png"))
    )
    assert len(test) == 4
    assert test.ids == [f"test/{i}" for i in range(4)]
    assert copies_in_test(source, train, SourceOptions(data_dir=tmp_path)) == 0
    (tmp_path / "packed").mkdir()
    with zipfile.ZipFile(tmp_path / "packed" / "train.zip", "w") as archive:  # the library unpacks it elsewhere
        archive.writestr("metadata.csv", "file_name,species\n0.png,cat\n1.png,dog\n")
        for i in range(2):
            archive.writestr(f"{i}.png", picture())
    assert load(f"hf:{tmp_path / 'packed'}", tmp_path, columns="label=species").classes == ["cat", "dog"]


def test_columns_are_found_by_type_and_name(hub: Path, tmp_path: Path) -> None:
    for source in (f"hf:{hub / 'saved'}", f"hf:{hub / 'parquet'}"):
        with pytest.raises(CnnlabError, match=r"'fine', 'coarse'.*columns=label=fine"):
            load(source, tmp_path)
        fine = load(source, tmp_path, columns="label=fine")
        assert fine.classes == ["x", "y", "z"]
        assert fine.images.shape == (6, 3, 64, 64)
        assert fine.groups == ["p", "q"] * 3
        assert "patient" in fine.notes[0]
        species = load(source, tmp_path, columns="label=species,group=")
        assert (species.classes, len(species), species.groups) == (["ant", "bee"], 5, None)
        assert any("1 train images" in text for text in species.warnings)
        assert load(source, tmp_path, columns="label=coarse").labels.tolist() == [0, 1, 0, 1, 0]
        with pytest.raises(CnnlabError, match="'nowhere'"):
            load(source, tmp_path, columns="label=nowhere")


def save_set(root: Path, **splits: dict[str, list[object]]) -> str:
    library = pytest.importorskip("datasets")
    made = {}
    for split, more in splits.items():
        count = len(next(iter(more.values())))
        made[split] = library.Dataset.from_dict({
            "image": [{"bytes": picture(), "path": None}] * count, "label": [i % 2 for i in range(count)], **more
        }).cast_column("image", library.Image())  # fmt: skip
    library.DatasetDict(made).save_to_disk(str(root / "set"))
    return f"hf:{root / 'set'}"


def test_a_column_of_splits_is_honoured(tmp_path: Path) -> None:
    source = save_set(tmp_path, train={"split": ["train", "Train", "test", "val", "train", "test"]})
    assert [len(load(source, tmp_path, split)) for split in ("train", "validation", "test")] == [3, 1, 2]
    assert any("split" in note for note in load(source, tmp_path).notes)
    assert len(load(source, tmp_path, columns="split=")) == 6
    two = save_set(tmp_path / "two", train={"split": ["test"] * 4}, test={"split": ["train"] * 2})
    found = load(two, tmp_path)
    assert len(found) == 4
    assert any("'split'" in note and "train, test" in note for note in found.notes)
    with pytest.raises(CnnlabError, match="columns=split=split"):
        load(two, tmp_path, columns="split=split")


def test_a_data_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").touch()  # a file
    with pytest.raises(CnnlabError, match=r"--data-dir"):
        load("torchvision:DTD", tmp_path / "data")


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ({"train": {"split": ["train", None, "test"]}}, "row 1.*split.*empty"),
        ({"train": {"split": ["train", "often", "test"]}}, "row 1.*split.*'often'"),
        ({"train": {"patient": ["a", None, "b"]}}, "row 1 .*train.*group.*columns=group="),
        ({"train": {"weight": [1.0, None, 1.0]}}, "row 1 .*train.*weight.*columns=weight="),
        ({"train": {"weight": [1.0, 220.0, 512.0]}}, r"\b1 to 512\b.*columns=weight="),
        ({"train_1": {"x": [0, 1]}, "train_2": {"x": [0, 1]}}, "'train_1', 'train_2'.*train split"),
    ],
)
def test_faults_in_columns_and_splits_are_named(
    tmp_path: Path, splits: dict[str, dict[str, list[object]]], words: str
) -> None:
    with pytest.raises(CnnlabError, match=words):
        load(save_set(tmp_path, **splits), tmp_path)


def test_splits_with_other_columns_are_refused(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets")
    images = library.Dataset.from_dict({"image": [{"bytes": picture(), "path": None}] * 2, "label": [0, 1]})
    images = images.cast_column("image", library.Image())
    named = images.cast_column("label", library.ClassLabel(names=["cat", "dog"]))
    texts = images.remove_columns("label").add_column("label", ["cat", "dog"])
    for i, (train, test, words) in enumerate([
        (images, images.remove_columns("label"), "the test split has no column 'label'"),
        (images, images.remove_columns("image"), "the test split has no column 'image'"),
        (named, texts, "label 'cat'"),
    ]):  # fmt: skip
        library.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / str(i)))
        with pytest.raises(CnnlabError, match=words):
            load(f"hf:{tmp_path / str(i)}", tmp_path)


def test_a_label_without_a_class_is_named() -> None:
    with pytest.raises(CnnlabError, match="label 2"):
        _texts("hf:set", [0, 1, 2], SimpleNamespace(names=["cat", "dog"]))
    with pytest.raises(CnnlabError, match=r"label '0.0'"):
        _texts("hf:set", [0.0, 1.0], None)


def test_splits_that_are_not_used_are_named(tmp_path: Path) -> None:
    found = load(save_set(tmp_path, train={"x": [0] * 4}, unsupervised={"x": [0] * 2}), tmp_path)
    assert len(found) == 4
    assert any("unsupervised" in note for note in found.notes)


def test_splits_that_name_their_classes_differently_are_refused(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets")
    made = {
        split: library.Dataset.from_dict(
            {"image": [{"bytes": picture(), "path": None}] * 2, "label": [0, 1]},
            library.Features({"image": library.Image(), "label": library.ClassLabel(names=names)}),
        )
        for split, names in (("train", ["cat", "dog"]), ("test", ["dog", "cat"]))
    }
    for split, part in made.items():
        part.save_to_disk(str(tmp_path / "set" / split))
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(CnnlabError, match="dog"):
        load(f"hf:{tmp_path / 'set'}", tmp_path)


def test_a_path_may_contain_the_sign_of_a_configuration(tmp_path: Path) -> None:
    source = save_set(tmp_path / "me@host", train={"x": [0] * 4})
    assert len(load(source, tmp_path)) == 4
    assert absolute(source) == source


def test_a_table_may_name_only_files_below_its_folder(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    (tmp_path / "secret.png").write_bytes(picture())
    (tmp_path / "set" / "in.png").write_bytes(picture())
    for name, good in (("set/in.png", True), ("secret.png", False), ("set/../secret.png", False), ("set", False)):
        made = library.Dataset.from_dict({"image": [f"{tmp_path}/{name}"] * 2, "label": [0, 1]})
        made.to_parquet(str(tmp_path / "set" / "train.parquet"))
        source = f"hf:{tmp_path / 'set'}"
        if good:
            assert len(load(source, tmp_path / "data", columns="path=image")) == 2
        else:
            with pytest.raises(CnnlabError, match=r"below|regular file"):
                load(source, tmp_path / "data", columns="path=image")


def test_a_local_set_gets_an_absolute_path(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hub)
    assert absolute("hf:saved") == f"hf:{hub / 'saved'}"
    assert absolute("hf:mnist") == "hf:mnist"
    assert absolute("csv:a.csv") == f"csv:{hub / 'a.csv'}"
    assert absolute("torchvision:DTD") == "torchvision:DTD"


def test_without_datasets_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CnnlabError, match=r"pip install 'cnnlab\[hf\]'"):
        load("hf:mnist", tmp_path)


def test_a_survey_does_not_decode_images_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_set(tmp_path, train={"x": [0] * 4})
    monkeypatch.setattr("cnnlab.data.files.decode_checked", None)
    for name, expected in ((source, (4, 2, 8, False)), ("torchvision:FakeData", (50, 10, 32, False))):
        found = survey(name, SourceOptions(data_dir=tmp_path))
        assert (found.count, found.classes, found.side, found.grey) == expected
