"""Recognizing files by their first bytes."""

from __future__ import annotations

import io
import zipfile

import pytest

from cnnlab.io.kinds import ZIP, Kind, kind_of


def zipped(*names: str, content: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name in names:
            file.writestr(name, content)
    return buffer.getvalue()


def known_kind(content: bytes) -> Kind:
    found = kind_of(content, content)
    assert found is not None
    return found


def test_many_comments_are_skipped() -> None:
    comments = b"<!-- a -->\n" * 10_000
    assert kind_of(comments + b"x") is None
    assert kind_of(b"<!---->" * 10_000 + b"<!--") is None
    assert known_kind(comments + b"<?xml version='1.0'?>\n<!DOCTYPE html>").group == "page"


def test_an_archive_that_holds_a_workbook_is_an_archive() -> None:
    workbook = zipped("[Content_Types].xml", "xl/workbook.xml")
    document = zipped("_rels/.rels", "word/document.xml")
    assert known_kind(workbook).group == "workbook"
    assert known_kind(document).what == "a Word document"
    assert known_kind(zipped("xl/worksheets/sheet1.xml")).group == "workbook"
    assert known_kind(zipped("Data/x.jpg", "Index/Document.iwa")).group == "workbook"
    for content in (workbook, document):
        assert known_kind(zipped("train/1.png", "labels.xlsx", content=content)).what == ZIP
    assert known_kind(zipped()).what == ZIP


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"), (b"\0\0\0\x18ftypmif1\0\0\0\0", "HEIC"),
        (bytes(128) + b"DICM\2\0", "DICOM"), (b"8BPS\0\1", "Photoshop"),
    ],
)  # fmt: skip
def test_unsupported_pictures_are_named_and_to_be_converted(content: bytes, what: str) -> None:
    assert what in known_kind(content).what
    assert "convert" in known_kind(content).in_place_of_image()


def test_git_pointers_name_the_command_that_gets_the_file() -> None:
    for content, command in (
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"/annex/objects/SHA256E-s1048--5f.jpg\n", "git annex get"),
        (b"../../.git/annex/objects/Gx/1k/SHA256E-s1048--5f.jpg/SHA256E-s1048--5f.jpg", "git annex get"),
    ):
        assert command in known_kind(content).in_place_of_image()
    assert known_kind(b"PAR1" + bytes(50) + b"PAR1").what == "a Parquet file"


def test_files_of_zero_bytes_are_to_be_downloaded_again() -> None:
    found = known_kind(bytes(5000))
    for text in (
        found.in_place_of_table(),
        found.in_place_of_archive(),
        found.in_place_of_folder(),
        found.in_place_of_image(),
    ):
        assert "download" in text
