"""Folders of images as people have them: what is found, what is skipped, what is refused."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from cnnlab.data import folder
from cnnlab.data.scan import Scan, scan
from cnnlab.io.errors import CnnlabError


def tree(root: Path, *files: str) -> Path:
    """Create empty files; a name that ends in a slash is an empty folder."""
    for name in files:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def image_counts(found: Scan) -> dict[str, dict[str, int]]:
    return {split: {name: len(files) for name, files in classes.items()} for split, classes in found.files.items()}


def passed_over_counts(found: Scan) -> dict[str, int]:
    return {kind: len(paths) for kind, paths in found.passed_over.items()}


TWO = ("cats/1.jpg", "cats/2.png", "dogs/1.jpg")


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    found = scan(tree(tmp_path, *TWO, "cats/deep/er/3.JPEG", "birds/1.webp"))
    assert found.classes == ["birds", "cats", "dogs"]
    assert image_counts(found) == {"train": {"birds": 1, "cats": 3, "dogs": 1}}
    files, labels = found.listing("train")
    assert labels == [0, 1, 1, 1, 2]
    assert files == sorted(files)
    assert passed_over_counts(found) == {}


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("train", "val", "test"), ("Training", "", "Testing"), ("TRAIN", "Validation", ""), ("train", "dev", "Test"),
     ("training set", "valid", "test-set"), ("train_set", "val_set", "test_set"), ("seg_train", "", "seg_test"),
     ("images.Train", "images.Val", "images.Test"), ("train2017", "val2017", ""),
     ("trn", "", "tst"), ("train", "", "eval"), ("entrenamiento", "Validación", "prueba")],
)  # fmt: skip
def test_usual_names_of_splits_are_found_in_any_letter_case(
    tmp_path: Path, train: str, validation: str, test: str
) -> None:
    wanted = {"train": train, "validation": validation, "test": test}
    for top in wanted.values():
        if top:
            tree(tmp_path / top, *TWO)
    found = scan(tmp_path)
    assert found.classes == ["cats", "dogs"]
    assert image_counts(found) == {split: {"cats": 2, "dogs": 1} for split, top in wanted.items() if top}


@pytest.mark.parametrize(
    ("files", "in_message"),
    [
        (("valid/cats/1.jpg", "valid/dogs/1.jpg", "test/cats/1.jpg"), r"test and valid\b.*\btrain\b"),
        (("train/cats/1.jpg", "train/dogs/1.jpg", "val/cats/1.jpg", "dev/cats/1.jpg"), "dev"),
        (("train/cat.0.jpg", "train/dog.0.jpg", "train/dog.1.jpg", "test/1.jpg"), "cat, dog"),
        (("train/0.jpg", "train/1.jpg"), "sub-folder"),
        (("cat_1.jpg", "cat_2.jpg", "dog_1.jpg"), "cat, dog"),
        (("train/cats/1.jpg", "train/dogs/1.jpg", "val/1.jpg"), "val"),
        (("train/cats/1.jpg", "train/dogs/1.jpg", "test/birds/1.jpg"), "birds"),
        (("train/cats/1.jpg", "train/dogs/1.jpg", "test/Cats/1.jpg"), r"Cats\b.*\bcats\b"),
        (("cats/1.jpg", "cats/2.jpg"), r"\(cats\)"),
        (("pets/cats/1.jpg", "pets/dogs/1.jpg"), "pets"),
        (("cats/1.jpg", "dogs/1.dng", "dogs/2.dng"), "dogs.*2 files.*dng"),
        (("cats/1.jpg", "dogs/1.jpg", "birds/a.NEF", "birds/notes.txt"), "birds"),
        (("cats/", "dogs/"), "no images"),
        (("train/cats/1.jpg", "train/dogs/1.jpg", "holdout/cats/1.jpg", "holdout/dogs/1.jpg"), "holdout"),
        (("a_train/cats/1.jpg", "a_train/dogs/1.jpg", "a_test/birds/1.jpg"), "birds"),
        (("train/1.jpg", "test1/2.jpg"), "sub-folders"),
        (("train_images/1.jpg", "test_images/2.jpg", "models/"), "sub-folders"),
        (("cats/train/1.jpg", "cats/test/1.jpg", "dogs/train/1.jpg", "dogs/test/1.jpg"), r"/cats .*\(test, train\)"),
        (("data/train/cats/1.jpg", "data/test/cats/1.jpg", "docs/1.png"), r"/data .*\(test, train\)"),
        (("A/1.jpg", "B/1.jpg", "set/A/1.jpg", "set/B/1.jpg"), "copy"),
        (("train/cats/1.jpg", "train/dogs/1.jpg", "val/images/1.jpg"), "no labels"),
        (("images/1.jpg", "images/2.jpg", "labels.csv"), "labels.csv"),
        (("images/cat_1.jpg", "images/cat_2.jpg", "images/dog_1.jpg"), "cat, dog"),
        (("1.jpg", "2.jpg", "patients.xlsx"), "patients.xlsx"),
        (("cats/1.jpg", "dogs/1.jpg", "test/1.jpg", "test/2.jpg"), "/test.*cnnlab predict"),
        (("cats/1.jpg", "dogs/1.jpg", "val/1.jpg"), "/val.*cnnlab predict"),
        (("fold1/cats/1.jpg", "fold1/dogs/1.jpg", "fold2/cats/2.jpg", "fold2/dogs/2.jpg"), "fold1, fold2"),
        (("support/cats/1.jpg", "query/cats/1.jpg"), "query, support"),
        (("bus/1.jpg", "car/1.jpg", "train/steam/1.jpg", "train/diesel/1.jpg"), "train .*bus and car"),
        (("cats/1.jpg", "dogs/1.mp4"), r"dogs.*\.mp4.*pictures"),
        (("cats/1.jpg", "dogs/all.zip"), "unpack"),
        (("cats/1.jpg", "dogs/.1.jpg.icloud"), "iCloud"),
        (("cats/1.jpg", "dogs/1.jpg_large", "dogs/2.jif"), "jif"),
        ((), "no images"),
    ],
)
def test_ambiguous_layouts_are_refused(tmp_path: Path, files: tuple[str, ...], in_message: str) -> None:
    with pytest.raises(CnnlabError, match=in_message) as refusal:
        scan(tree(tmp_path, *files))
    assert "\n" not in str(refusal.value)


def test_skipped_files_are_counted_and_named(tmp_path: Path) -> None:
    found = scan(
        tree(
            tmp_path, *TWO, "cats/3.cr2", "cats/4.CR2", "birds/", "1.jpg", "2.jpg", "3.png", "labels.csv", "dogs/a/"
        )
    )  # fmt: skip
    (tmp_path / "dogs/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    found = scan(tmp_path)
    assert found.classes == ["cats", "dogs"]
    assert passed_over_counts(found) == {
        "image outside any class": 3, ".cr2": 2, ".csv": 1, "dangling link": 1, "empty folder": 1,
    }  # fmt: skip
    assert found.passed_over["empty folder"] == [str(tmp_path / "birds")]


def test_a_folder_without_any_image_is_named(tmp_path: Path) -> None:
    found = scan(tree(tmp_path, *TWO, "notes/1.txt", "notes/2.txt"))
    assert found.classes == ["cats", "dogs"]
    assert found.passed_over == {
        ".txt": [str(tmp_path / "notes/1.txt"), str(tmp_path / "notes/2.txt")],
        "folder without images": [str(tmp_path / "notes")],
    }


def test_class_names_may_contain_the_name_of_a_split(tmp_path: Path) -> None:
    found = scan(tree(tmp_path, "train station/1.jpg", "test tube/1.jpg", "dev board/1.jpg"))
    assert found.classes == ["dev board", "test tube", "train station"]
    found = scan(tree(tmp_path / "2", "train station/2019/1.jpg", "bus stop/2019/1.jpg"))
    assert found.classes == ["bus stop", "train station"]


def test_nested_chinese_and_keras_splits_are_found(tmp_path: Path) -> None:
    nested = tree(tmp_path / "a", *(f"seg_{s}/seg_{s}/{n}/1.jpg" for s in ("train", "test") for n in ("cats", "dogs")))
    assert image_counts(scan(nested)) == {split: {"cats": 1, "dogs": 1} for split in ("train", "test")}
    chinese = tree(tmp_path / "b", "训练集/猫/1.jpg", "训练集/狗/1.jpg", "测试集/猫/1.jpg")
    assert image_counts(scan(chinese)) == {"train": {"狗": 1, "猫": 1}, "test": {"猫": 1}}
    keras = tree(tmp_path / "c", "train/cats/1.jpg", "train/dogs/1.jpg", "test/unknown/1.jpg", "0.jpg", "train/9.jpg")
    assert [path.name for path in scan(keras).unlabelled] == ["1.jpg"]
    assert passed_over_counts(scan(keras)) == {"image outside any class": 2}


def test_files_with_odd_endings_are_skipped_or_refused(tmp_path: Path) -> None:
    found = scan(tree(tmp_path, *TWO, "cats/3.jpg?x=1", "cats/1.2.840.3", "cats/4.c!w6", "code/LICENSE"))
    assert passed_over_counts(found) == {"file without an extension": 4, "folder without images": 1}
    Image.new("L", (4, 4)).save(tmp_path / "birds.png")
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds.png").rename(tmp_path / "birds/8c1f")
    with pytest.raises(CnnlabError, match="birds"):
        scan(tmp_path)
    (tmp_path / "birds/8c1f").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(CnnlabError, match="birds"):
        scan(tmp_path)


def test_a_class_folder_that_is_a_dangling_link_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, *TWO)
    (tmp_path / "birds").symlink_to(tmp_path / "usb/birds")
    with pytest.raises(CnnlabError, match="birds.*usb/birds"):
        scan(tmp_path)


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, *TWO, "cats/more/3.jpg")
    (tmp_path / "cats/more").chmod(0)
    with pytest.raises(CnnlabError, match="permissions"):
        scan(tmp_path)
    (tmp_path / "cats/more").chmod(0o700)


def test_folders_written_by_commands_are_not_classes(tmp_path: Path) -> None:
    runs = ("runs/cifar-10/competition.json", "runs/cifar-10/figure-1.8.png", "runs/cifar-10/train/run.json")
    assert image_counts(scan(tree(tmp_path, *TWO, *runs))) == {"train": {"cats": 2, "dogs": 1}}


def test_a_class_of_dangling_links_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, *TWO, "birds/")
    (tmp_path / "birds/1.jpg").symlink_to(tmp_path / "unmounted/1.jpg")
    with pytest.raises(CnnlabError, match="birds.*dangling link"):
        scan(tmp_path)


def test_system_folders_are_not_classes(tmp_path: Path) -> None:
    found = scan(
        tree(
            tmp_path, *TWO, "@eaDir/cats/1.jpg", "cats/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/1.jpg",
            "$RECYCLE.BIN/1.jpg", "__MACOSX/cats/1.jpg", ".thumbnails/1.png", "cats/._1.jpg", "dogs/Thumbs.db",
            "lost+found/", "cats/.DS_Store", "System Volume Information/x.dat", "@__thumb/1.jpg", "FOUND.000/1.jpg",
            "Trash-1000/1.jpg", "cats/Trash/1.jpg", "dogs/thumbs/1.jpg", "Thumbnails/cats/1.jpg", "Lightroom.lrdata/1.jpg", "~snapshot/daily/1.jpg", "LOST.DIR/1.jpg",
        )
    )  # fmt: skip
    assert image_counts(found) == {"train": {"cats": 2, "dogs": 1}}
    assert passed_over_counts(found) == {}


def test_runs_inside_the_data_are_not_classes(tmp_path: Path) -> None:
    plain = scan(tree(tmp_path, *TWO))
    run = ("run.json", "curves.png", "checkpoint.safetensors")
    tree(tmp_path / "runs/mine-001", *run)
    tree(tmp_path / "runs/mine-002/seed-0", *run)
    tree(tmp_path / "runs/mine-002", "seeds.json", "compare.png")
    tree(tmp_path / "cats/runs/other", *run)
    tree(tmp_path / "single-run", *run)
    found = scan(tmp_path)
    assert found.files == plain.files
    assert passed_over_counts(found) == {"folder of runs": 2, "run": 1}


def test_one_name_in_two_unicode_forms_is_one_class(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    tree(tmp_path, f"train/{composed}/1.jpg", f"train/{decomposed}/2.jpg", "train/bar/1.jpg")
    tree(tmp_path, f"test/{decomposed}/3.jpg", "test/bar/1.jpg")
    if len(list((tmp_path / "train").iterdir())) == 2:
        pytest.skip("this file system has one form only")
    found = scan(tmp_path)
    assert len(found.classes) == 2
    name = found.classes[1]
    assert (tmp_path / "train" / name).is_dir()  # spelled as on the disk
    assert image_counts(found) == {"train": {"bar": 1, name: 2}, "test": {"bar": 1, name: 1}}


def test_unlabelled_test_images_are_found(tmp_path: Path) -> None:
    found = scan(tree(tmp_path, "train/cats/1.jpg", "train/dogs/1.jpg", "test/1.jpg", "test/2.jpg"))
    assert set(found.files) == {"train"}
    assert [path.name for path in found.unlabelled] == ["1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("asl_alphabet_train", "asl_alphabet_test"),
        ("asl_alphabet_train/asl_alphabet_train", "asl_alphabet_test/asl_alphabet_test"),
        ("train", "test"),
    ],
)
def test_a_flat_test_folder_is_not_a_class_and_file_names_may_give_the_classes(
    tmp_path: Path, train: str, test: str
) -> None:
    tree(
        tmp_path,
        *(f"{train}/{c}/{c}1.jpg" for c in ("A", "B", "space")),
        f"{test}/A_test.jpg",
        f"{test}/space_test.jpg",
    )
    found = scan(tmp_path)
    assert image_counts(found) == {"train": {"A": 1, "B": 1, "space": 1}}
    assert sorted(path.name for path in found.unlabelled) == ["A_test.jpg", "space_test.jpg"]
    (warning,) = folder.listing(tmp_path).warnings
    assert "A_test.jpg" in warning
    assert "sub-folder" in warning
    tree(tmp_path, f"{test}/8841.jpg")
    (warning,) = folder.listing(tmp_path).warnings
    assert "measured" in warning


def test_a_link_to_a_parent_folder_adds_no_images_to_a_class(tmp_path: Path) -> None:
    tree(tmp_path, *TWO)
    (tmp_path / "cats/up").symlink_to(tmp_path, target_is_directory=True)
    assert image_counts(scan(tmp_path)) == {"train": {"cats": 2, "dogs": 1}}


def test_folders_beside_the_splits_are_counted(tmp_path: Path) -> None:
    found = scan(tree(tmp_path, "train/cats/1.jpg", "train/dogs/1.jpg", "unlabelled/1.jpg", "readme.md", "docs/"))
    assert passed_over_counts(found) == {".md": 1, "other folder": 1}


def test_sub_folders_common_to_all_classes_are_noted(tmp_path: Path) -> None:
    tree(tmp_path / "color", *TWO)
    tree(tmp_path / "grayscale", *TWO)
    found = scan(tmp_path)
    assert found.classes == ["color", "grayscale"]
    assert found.repeated == ("cats", "dogs")
    tree(tmp_path, "segmented/1.jpg")  # a class folder with images of its own
    assert scan(tmp_path).repeated == ()


def test_classes_may_be_named_like_system_folders_or_splits(tmp_path: Path) -> None:
    for classes in (["glass", "paper", "trash"], ["fist", "thumbs"], ["invalid", "valid"], ["part1", "part2"]):
        found = scan(tree(tmp_path / classes[0], *(f"{name}/of {name}/1.jpg" for name in classes)))
        assert found.classes == classes


def test_tables_named_like_cnnlabs_do_not_hide_a_class(tmp_path: Path) -> None:
    found = scan(tree(tmp_path, *TWO, "cats/cv/folds.json", "dogs/grades.csv", "dogs/2.jpg", "dogs/3.jpg"))
    assert image_counts(found) == {"train": {"cats": 2, "dogs": 3}}


def test_arrays_beside_images_are_not_images(tmp_path: Path) -> None:
    found = scan(tree(tmp_path, *TWO, "cats/1.npy", "masks/1.npy", "masks/2.npy"))
    assert image_counts(found) == {"train": {"cats": 2, "dogs": 1, "masks": 2}}
    assert passed_over_counts(found) == {".npy": 1}
