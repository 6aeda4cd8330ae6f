"""`wds:` and `parquet:`: the same images and labels as from a folder, and one-line errors."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnlab.data import SourceOptions, load_images
from cnnlab.data.imageset import ImageSet
from cnnlab.data.pack_writer import pack
from cnnlab.data.packed import in_memory
from cnnlab.io.errors import CnnlabError
from conftest import Command, one_line_error

DRAW = np.random.default_rng(0)
OPTIONS = SourceOptions(data_dir=Path("data"))


def jpeg(side: int = 12) -> bytes:
    file = io.BytesIO()
    Image.fromarray(DRAW.integers(0, 256, (side, side + 3, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write_shard(path: str, files: Iterable[tuple[str, bytes]], mode: str = "w:") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def load_source(source: str, split: str = "train", columns: str = "") -> ImageSet:
    images = load_images(source, split, SourceOptions(data_dir=Path("data"), columns=columns))
    assert images is not None
    return images


def assert_same(one: ImageSet, pixels: list[bytes], labels: list[str]) -> None:
    found = [one.classes[k] for k in one.labels.tolist()]
    assert found == labels
    for i, content in enumerate(pixels):
        Path("one/a").mkdir(parents=True, exist_ok=True)
        Path(f"one/a/{i:03}.jpg").write_bytes(content)
    Path("one/b").mkdir(exist_ok=True)
    Path("one/b/0.jpg").write_bytes(pixels[0])
    assert torch.equal(in_memory(one.images, "this"), load_source("folder:one").images[: len(pixels)])


def test_tar_shards_are_read() -> None:
    files = [jpeg(10 + i) for i in range(9)]
    for s in range(3):
        part = range(3 * s, 3 * s + 3)
        write_shard(f"tars/train-{s:02}.tar", ((f"d/{i:04}.{e}", c) for i in part
              for e, c in (("jpg", files[i]), ("cls", str(i % 3 + 9).encode()))))  # fmt: skip
    write_shard("tars/val-00.tar", [("x.jpg", files[0]), ("x.cls", b"9"), ("y.jpg", files[1]), ("y.cls", b"10"),
                             ("z.jpg", files[1]), ("z.cls", b"11")])  # fmt: skip
    for pattern in ("tars", "tars/*.tar", "**/*.tar", "tars/**.tar"):
        images = load_source(f"wds:{pattern}")
        assert images.classes == ["9", "10", "11"]
        assert_same(images, files, [str(i % 3 + 9) for i in range(9)])
        assert load_source(f"wds:{pattern}", "validation").labels.tolist() == [0, 1, 2]
    assert len(load_source("wds:tars/train-{01..02}.tar")) == 6
    pack("wds:tars", "store", OPTIONS)
    assert_same(load_source("pack:store"), files, [str(i % 3 + 9) for i in range(9)])
    with pytest.raises(CnnlabError, match=r"train-03\.tar"):
        load_source("wds:tars/train-{00..03}.tar")


def test_shards_with_the_same_name_have_distinct_ids() -> None:
    for folder in ("train/a", "train/b", "test"):
        write_shard(f"tars/{folder}/0.tar", [("1.jpg", jpeg()), ("1.cls", b"x"), ("2.jpg", jpeg()), ("2.cls", b"y")])
    assert load_source("wds:tars/train").ids == ["a/0/1.jpg", "a/0/2.jpg", "b/0/1.jpg", "b/0/2.jpg"]
    assert load_source("wds:tars", "test").ids == ["test/0/1.jpg", "test/0/2.jpg"]
    assert load_source("wds:tars/train/a").ids == ["0/1.jpg", "0/2.jpg"]


def test_labels_are_read_from_json() -> None:
    about = [
        json.dumps({"species": "ab"[i % 2], "patient": f"p{i}", "w": 1 + i, "tags": []}).encode() for i in range(4)
    ]
    write_shard("t.tar", ((f"{i}.{e}", c) for i in range(4) for e, c in (("json", about[i]), ("jpg", jpeg()))))
    images = load_source("wds:t.tar", columns="label=species,group=patient,weight=w")
    assert images.classes == ["a", "b"]
    assert images.groups == ["p0", "p1", "p2", "p3"]
    assert images.weights is not None
    assert images.weights.tolist() == [1, 2, 3, 4]
    with pytest.raises(CnnlabError, match="columns=label=NAME"):
        load_source("wds:t.tar", columns="group=patient")
    write_shard("both.tar", ((f"{i}.{e}", c) for i in range(4)
                       for e, c in (("json", about[i]), ("jpg", jpeg()), ("cls", b"xy"[i % 2 :][:1]))))  # fmt: skip
    assert load_source("wds:both.tar").groups is None
    images = load_source("wds:both.tar", columns="group=patient")
    assert (images.classes, images.groups) == (["x", "y"], ["p0", "p1", "p2", "p3"])
    assert load_source("wds:both.tar", columns="label=species").classes == ["a", "b"]
    with pytest.raises(CnnlabError, match="hospital"):
        load_source("wds:both.tar", columns="group=hospital")
    with pytest.raises(CnnlabError, match="columns=path=x"):
        load_source("wds:both.tar", columns="path=x")
    about = [json.dumps({"label": i % 2, "path": "x", "file_name": f"{i}.png"}).encode() for i in range(2)]
    write_shard("named.tar", ((f"{i}.{e}", c) for i in range(2) for e, c in (("json", about[i]), ("jpg", jpeg()))))
    assert load_source("wds:named.tar").labels.tolist() == [0, 1]  # a field named like a file is not the image


def test_groups_and_weights_of_one_split_survive_packing() -> None:
    about = [{"label": "ab"[i % 2], "patient": f"p{i // 2}", "weight": 1 + i} for i in range(4)]
    for split, rows in (("train", about), ("test", [{"label": row["label"]} for row in about])):
        write_shard(f"set/{split}.tar", ((f"{i}.{e}", c) for i, row in enumerate(rows)
                    for e, c in (("json", json.dumps(row).encode()), ("jpg", jpeg()))))  # fmt: skip
    pack("wds:set", "packed", OPTIONS)
    train, test = load_source("pack:packed"), load_source("pack:packed", "test")
    assert train.groups == load_source("wds:set").groups == ["p0", "p0", "p1", "p1"]
    assert train.weights is not None
    assert train.weights.tolist() == [1, 2, 3, 4]
    assert test.groups is None
    assert test.weights is None or test.weights.tolist() == [1] * 4


def test_a_field_of_json_gives_the_split() -> None:
    splits = ["train", "train", "val", "test"]
    about = [json.dumps({"label": "ab"[i % 2], "split": split}).encode() for i, split in enumerate(splits)]
    write_shard("t.tar", ((f"{i}.{e}", c) for i in range(4) for e, c in (("json", about[i]), ("jpg", jpeg()))))
    assert [load_source("wds:t.tar", split).ids for split in ("train", "validation", "test")] == [
        ["t/0.jpg", "t/1.jpg"], ["t/2.jpg"], ["t/3.jpg"],
    ]  # fmt: skip
    assert len(load_source("wds:t.tar", columns="split=")) == 4
    write_shard("odd.tar", [("1.jpg", jpeg()), ("1.json", b'{"label": "a", "split": "often"}')])
    with pytest.raises(CnnlabError, match="often"):
        load_source("wds:odd.tar")


@pytest.mark.parametrize(
    ("files", "mode", "text"),
    [
        ([("1.jpg", b"x"), ("1.cls", b"0"), ("2.jpg", b"x"), ("2.cls", b"0")], "w:", "one class"),
        ([("1.jpg", b"x"), ("1.png", b"x"), ("1.cls", b"0")], "w:", r"\.jpg and \.png"),
        ([("1.jpg", b"x"), ("2.jpg", b"x"), ("1.cls", b"0")], "w:", "twice"),
        ([("1.jpg", b"x"), ("1.json", b"[")], "w:", "JSON"),
        ([("1.jpg", b"x"), ("1.json", b"[" * 100_000)], "w:", "JSON"),
        ([("1.txt", b"x")], "w:", "KEY.jpg"),
        ([("1.jpg", b"x"), ("1.cls", b"0")], "w:gz", "gunzip"),
        ([("1.jpg", b"x"), ("2.jpg", b"x")], "w:", "no labels"),
        ([("1.jpg", b"x"), ("1.cls", b"0"), ("2.jpg", b"x"), ("2.cls", b"1")], "w:", r"1\.jpg.*damaged"),
    ],
)
def test_bad_shards_are_refused(files: list[tuple[str, bytes]], mode: str, text: str) -> None:
    write_shard("train.tar", files, mode)
    with pytest.raises(CnnlabError, match=text):
        load_source("wds:train.tar")


def test_a_truncated_shard_is_an_error() -> None:
    write_shard("t.tar", ((f"{i}.{e}", c) for i in range(4) for e, c in (("cls", b"ab"[i % 2 :][:1]), ("jpg", jpeg()))))
    content = Path("t.tar").read_bytes()
    Path("t.tar").write_bytes(content[: len(content) // 2 - 700])
    with pytest.raises(CnnlabError):
        load_source("wds:t.tar")


def test_parquet_files_are_read(cnnlab: Command) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    files = [jpeg(10 + i) for i in range(90)]
    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    Path("set/data").mkdir(parents=True)
    for s, (split, part) in enumerate([("train", range(70)), ("train", range(70, 80)), ("test", range(80, 90))]):
        table = pa.table(
            {"image": [{"bytes": files[i], "path": None} for i in part], "label": [i % 2 for i in part]}
        ).replace_schema_metadata({"huggingface": json.dumps(names)})
        pq.write_table(table, f"set/data/{split}-0000{s}-of-00003.parquet", row_group_size=40)
    images = load_source("parquet:set")
    assert images.classes == ["cat", "dog"]
    assert_same(images, files[:80], [["cat", "dog"][i % 2] for i in range(80)])
    assert len(load_source("parquet:set", "test")) == 10
    pack("parquet:set", "store", OPTIONS)
    assert_same(load_source("pack:store"), files[:80], [["cat", "dog"][i % 2] for i in range(80)])
    plain = pa.table({"jpg": files[:4], "y": ["a", "b", "a", None], "split": ["train", "training", "val", "test"]})
    pq.write_table(plain, "plain.parquet")
    assert load_source("parquet:plain.parquet", columns="label=y").labels.tolist() == [0, 1]
    pq.write_table(plain.slice(0, 0), "empty.parquet")
    with pytest.raises(CnnlabError, match=r"empty\.parquet.*no images"):
        load_source("parquet:empty.parquet", columns="label=y")
    Path("bad.parquet").write_bytes(b"PAR1")
    assert "damaged" in one_line_error(cnnlab("data", "pack", "parquet:bad.parquet", "other"))
    with pytest.raises(CnnlabError, match=r"bad\.parquet.*damaged"):
        load_source("parquet:bad.parquet")
    with pytest.raises(CnnlabError, match=r"none\.parquet"):
        load_source("parquet:none.parquet")


def test_parquet_files_that_name_their_classes_differently_are_refused() -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    for split, names in (("train", ["cat", "dog"]), ("test", ["dog", "cat"])):
        about = json.dumps({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})
        table = pa.table({"image": [{"bytes": jpeg(), "path": None}] * 2, "label": [0, 1]})
        Path("set").mkdir(exist_ok=True)
        pq.write_table(table.replace_schema_metadata({"huggingface": about}), f"set/{split}.parquet")
    with pytest.raises(CnnlabError, match="test.parquet"):
        load_source("parquet:set")


def test_parquet_rows_can_be_read_in_any_order() -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    from cnnlab.data.parquet import _Rows

    pq.write_table(
        pa.table({"image": [bytes([i % 256, i // 256]) for i in range(700)]}), "t.parquet", row_group_size=150
    )
    rows = _Rows(Path("t.parquet"), "image")
    for i in [0, 1, 699, 3, 149, 150, 151, 40, 600, 599, *DRAW.integers(0, 700, 50).tolist()]:
        assert rows.read(i) == bytes([i % 256, i // 256])


def test_few_parquet_files_are_open_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    from cnnlab.data import parquet

    monkeypatch.setattr(parquet, "_OPEN", 3)
    files = [parquet._Rows(Path(f"{i}.parquet"), "image") for i in range(8)]
    for i, rows in enumerate(files):
        pq.write_table(pa.table({"image": [bytes([i, k]) for k in range(100)]}), rows.file)
    for k in (0, 50, 99, 1):
        for i, rows in enumerate(files):
            assert rows.read(k) == bytes([i, k])
            assert sum(bool(one._table or one._kept) for one in files) <= 3


def test_parquet_without_pyarrow_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CnnlabError, match=r"pip install 'cnnlab\[parquet\]'"):
        load_source("parquet:t.parquet")
