"""`csv:FILE`: encodings, separators, column names, splits, groups, weights, and errors in tables."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnlab.data import ImageSet, SourceOptions, copies_in_test, load_images
from cnnlab.data.table import USUAL, choose_columns
from cnnlab.io.errors import CnnlabError

NAMES = [f"images/{i}.png" for i in range(6)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def write(root: Path, *lines: str, encoding: str = "utf-8", name: str = "table.csv") -> Path:
    (root / name).write_bytes("\r\n".join(lines).encode(encoding))
    return root / name


def load(path: Path, split: str = "train", **options: object) -> ImageSet:
    found = load_images(f"csv:{path}", split, SourceOptions(data_dir=Path(), **options))  # type: ignore[arg-type]
    assert found is not None
    return found


def test_a_table_loads_the_files_it_lists(root: Path) -> None:
    found = load(write(root, "path,label", *(f"{name},{'ab'[i % 2]}" for i, name in enumerate(NAMES))))
    assert found.ids == NAMES
    assert found.classes == ["a", "b"]
    assert found.labels.tolist() == [0, 1] * 3
    assert found.groups is None
    assert found.weights is None
    assert found.notes == ()
    for pixels, name in zip(found.images, NAMES, strict=True):
        np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(Image.open(root / name)))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_encodings_and_separators_are_detected(root: Path, encoding: str, separator: str) -> None:
    lines = [("文件名", "类别"), *((name, "猫" if i < 3 else "狗") for i, name in enumerate(NAMES))]
    found = load(write(root, *(separator.join(line) for line in lines), encoding=encoding))
    assert found.classes == ["狗", "猫"]
    assert found.labels.tolist() == [1, 1, 1, 0, 0, 0]
    assert "文件名" in found.notes[0]


def test_splits_groups_and_weights_are_read(root: Path) -> None:
    table = write(
        root, "File;Species;Set;Patient;W",
        f"{NAMES[0]};cat;train;p1;0,5", f"{NAMES[1]};dog;Training;p2;2", f"{NAMES[2]};cat;val;p3;1",
        f"{NAMES[3]};dog;test;p4;1", f"{NAMES[4]};;test;p5;1", f"{NAMES[5]};dog;验证;p3;1",
    )  # fmt: skip
    columns = "label=species,split=set,weight=w"
    train, validation, test = (load(table, split, columns=columns) for split in ("train", "validation", "test"))
    assert train.groups == ["p1", "p2"]
    assert train.weights is not None
    assert train.weights.tolist() == [0.5, 2.0]
    assert train.weights.dtype == torch.float32
    assert validation.ids == [NAMES[2], NAMES[5]]
    assert test.ids == [NAMES[3]]
    assert any("1 test images" in text for text in train.warnings)
    assert copies_in_test(f"csv:{table}", train, SourceOptions(data_dir=Path(), columns=columns)) == 0
    (root / NAMES[3]).write_bytes((root / NAMES[0]).read_bytes())
    assert copies_in_test(f"csv:{table}", train, SourceOptions(data_dir=Path(), columns=columns)) == 1
    assert load(table, columns=f"{columns},group=").groups is None


@pytest.mark.parametrize(
    ("header", "columns", "expected"),
    [
        ("filename,class", "", {"path": 0, "label": 1}),
        ("target,File_Name", "", {"path": 1, "label": 0}),
        ("id,image,label,patient_id", "", {"path": 1, "label": 2, "group": 3}),
        ("image_id,has_cactus", "", {"path": 0, "label": 1}),
        ("frame,label", "", {"path": 0, "label": 1}),
        ("a,b,c,d", "path=b,label=D", {"path": 1, "label": 3}),
        ("path,label,group,weight", "group=,weight=", {"path": 0, "label": 1}),
        ("file,filename,label", "path=filename", {"path": 1, "label": 2}),
    ],
)
def test_columns_are_found_by_their_usual_names(header: str, columns: str, expected: dict[str, int]) -> None:
    places, note = choose_columns("t.csv", header.split(","), columns)
    assert places == expected
    named = {part.partition("=")[0] for part in columns.split(",")}
    usual = all(header.split(",")[place] == kind for kind, place in places.items() if kind not in named)
    assert bool(note) != usual


def test_usual_column_names_are_plain_and_distinct() -> None:
    from cnnlab.io.csv import plain_header

    names = [name for tiers in USUAL.values() for tier in tiers for name in tier]
    assert all(plain_header(name) == name for name in names)
    assert len(set(names)) == len(names)


def test_files_are_found_by_name_below_the_table(root: Path) -> None:
    found = load(write(root, "image_id,label", *(f"{i},{i % 2}" for i in range(6))))
    assert found.ids == NAMES
    assert "6 images" in found.notes[1]
    assert load(write(root, "path,label", "IMAGES\\0.PNG,a", "images\\1.png,b")).ids == NAMES[:2]
    outside = root / "deep"
    outside.mkdir()
    assert load(write(outside, "path,label", f"../{NAMES[0]},a", f"{root / NAMES[1]},b")).images.shape[0] == 2
    Image.new("L", (8, 8)).save(outside / "0.png")
    with pytest.raises(CnnlabError, match=r"'0\.png'.*/0\.png.*/0\.png"):
        load(write(root, "path,label", "0.png,a", "1.png,b"))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "10", "1"], ["1", "9", "10"]),
        (["1.0", "0.0", "1.0", "0.0"], ["0", "1"]),
        (["1.5", "0.0", "1.5", "0.0"], ["0.0", "1.5"]),
        ([" b", "a ", "b", "a"], ["a", "b"]),
    ],
)
def test_class_names_are_cleaned_and_sorted(root: Path, labels: list[str], classes: list[str]) -> None:
    table = write(root, "path,label", *(f"{n},{label}" for n, label in zip(NAMES, labels, strict=False)))
    assert load(table).classes == classes


def test_optional_columns_are_mentioned_and_a_column_in_grams_is_not_used_as_weights(root: Path) -> None:
    rows = [f"{name},{'ab'[i % 2]},{10**i}" for i, name in enumerate(NAMES)]
    table = write(root, "path,label,weight", *rows)
    with pytest.raises(CnnlabError, match=r"\b1 to 100000\b.*columns=weight="):
        load(table)
    assert load(table, columns="weight=").weights is None
    assert load(table, columns="weight=weight").weights is not None
    assert "weight" in load(write(root, "path,label,weight", *rows[:3])).notes[0]
    with pytest.raises(CnnlabError, match="line 2.*path.*longer"):
        load(write(root, "path,label", f"{'x' * 300}.png,a", *(row.rpartition(",")[0] for row in rows)))


ROWS = [f"{name},{'ab'[i % 2]}" for i, name in enumerate(NAMES)]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["path,label,group", *(f"{row},p" for row in ROWS[:3]), f"{ROWS[3]},"], "line 5.*group.*columns=group="),
        (["path,label,weight", f"{ROWS[0]},1", f"{ROWS[1]},nan"], "line 3.*weight.*'nan'"),
        (["path,label,weight", f"{ROWS[0]},1", f"{ROWS[1]},NaN"], "line 3.*weight"),
        (["path,label,weight", f"{ROWS[0]},-1"], "line 2.*weight"),
        (["path,label,weight", f"{ROWS[0]},inf"], "line 2.*weight"),
        (["path,label,weight", f"{ROWS[0]},much"], "line 2.*'much'"),
        (["path,label,weight", f"{ROWS[0]},"], "line 2.*weight.*empty"),
        (["path,label,weight", f"{ROWS[0]},0", f"{ROWS[1]},0"], "weight 0"),
        (["path,label,split", *(f"{row},train" for row in ROWS[:2]), f"{NAMES[2]},c,val"], "line 4.*'c'.*validation"),
        (["path,label,split", *(f"{row},train" for row in ROWS[:2]), f"{NAMES[2]},A,val"], r"line 4.*'A'.*\ba$"),
        (["path,label,split", f"{ROWS[0]},train", f"{ROWS[1]},holdout"], "line 3.*'holdout'"),
        (["path,label,split", f"{ROWS[0]},", f"{ROWS[1]},train"], "line 2.*split.*empty"),
        (["path,label,split", f"{ROWS[0]},val", f"{ROWS[1]},test"], "training"),
        (["path,label", ROWS[0], ROWS[2]], r"class \(a\)"),
        (["path,label", ROWS[0], f"{NAMES[1]},"], "line 3.*label.*empty"),
        (["path,label", ROWS[0], ",b"], "line 3.*path.*empty"),
        (["path,label", ROWS[0], ROWS[1], ROWS[0]], "line 4.*line 2"),
        (["path,label", ROWS[0], "images/9.png,b"], r"images/9\.png.*--skip-bad"),
        (["path,label", "8.png,a", "9.png,b"], r"\b2 images.*8\.png"),
        (["path,label", ROWS[0], "http://x.org/1.png,b"], "line 3.*address"),
        (["path,label", ROWS[0], "images/1.png"], "line 3.*1 fields"),
        (["path,label"], "no rows"),
        ([""], "empty"),
        ([*ROWS], "header"),
        (["path,species,colour", *(f"{row},x" for row in ROWS)], "columns=label=NAME.*'species'"),
        (["file,path,label", *(f"{name},{row}" for name, row in zip(NAMES, ROWS, strict=True))], "columns=path=file"),
    ],
)  # fmt: skip
def test_faults_are_one_line(root: Path, lines: list[str], words: str) -> None:
    table = write(root, *lines)
    with pytest.raises(CnnlabError, match=words) as caught:
        load(table)
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("path=nowhere", "'nowhere'"),
        ("pfad=path", "'pfad'"),
        ("path", "kind=name"),
        ("path=path,path=label", "twice"),
        ("group=label", "'label'.*group"),
    ],
)
def test_faults_in_the_columns_setting_are_named(root: Path, columns: str, words: str) -> None:
    with pytest.raises(CnnlabError, match=words):
        load(write(root, "path,label", *ROWS), columns=columns)


def test_other_sources_in_place_of_a_table_are_named(root: Path) -> None:
    (root / "book.csv").write_bytes(b"PK\3\4" + bytes(26) + b"xl/workbook.xml")
    for source, words in (
        (f"csv:{root}", f"folder:{root}"),
        (f"csv:{root / 'none.csv'}", r"none\.csv"),
        ("csv:", "csv:FILE"),
        (f"csv:{root / 'book.csv'}", "archive|workbook"),
        (str(write(root, "path,label", *ROWS)), f"csv:{re.escape(str(root))}"),
    ):
        with pytest.raises(CnnlabError, match=words):
            load_images(source, "train", SourceOptions(data_dir=Path()))
    with pytest.raises(CnnlabError, match="columns=path=x"):
        load_images(f"folder:{root}", "train", SourceOptions(data_dir=Path(), columns="path=x"))


def test_missing_files_are_skipped_on_request(root: Path) -> None:
    found = load(write(root, "path,label", *ROWS[:4], "images/9.png,b"), skip_bad=True)
    assert len(found) == 4
    assert "9.png" in found.skipped[0]


def test_a_run_on_a_table_is_evaluated_and_continued_from_another_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cnnlab import evaluate_run, predict, resume, train

    rows = [f"{name},{'ab'[i % 2]},{'test' if i > 3 else 'train'}" for i, name in enumerate(NAMES)]
    write(root, "bild,art,satz", *rows)
    (root / "elsewhere").mkdir()
    monkeypatch.chdir(root)
    columns = "path=bild,label=art,split=satz"
    result = train(data="csv:table.csv", columns=columns, model="lenet", image_size=28, epochs=1, batch_size=2,
                   val_fraction=0.5, threads=1, progress="none")  # fmt: skip
    assert result.run.path.name.startswith("csv-table-")
    run = root / result.run.path
    monkeypatch.chdir(root / "elsewhere")
    evaluation = evaluate_run(run, threads=1)
    assert (evaluation.split, evaluation.result.count) == ("test", 2)
    assert evaluation.images is not None
    assert evaluation.images.ids == NAMES[4:]
    moved = root.rename(root.with_name("moved"))
    monkeypatch.chdir(moved)
    with pytest.raises(CnnlabError, match="--data"):
        evaluate_run(moved / run.relative_to(root), threads=1)
    again = resume(moved / run.relative_to(root), data="csv:table.csv", epochs=2, threads=1, progress="none")
    assert again.run.recipe.columns == columns
    assert len(predict(again.run, [moved / NAMES[0]], threads=1)[0]) == 1
