"""Recognize a file by its first bytes, so that an error says what was given in place of a table or an archive.

The name proves nothing: workbooks are renamed to .csv, and browsers save login pages as train.zip.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

HEAD = 1 << 16  # bytes that suffice, at either end of a file
ZIP, SEVEN_ZIP = "a zip archive", "a 7z archive"  # the archives that we read

_ARCHIVE, _WORKBOOK, _PAGE, _PICTURE, _IMAGE, _ZEROS, _LFS, _ANNEX, _OTHER = (
    "archive", "workbook", "page", "picture", "image", "zeros", "lfs", "annex", "other",
)  # fmt: skip
_DOWNLOAD = "log in with a browser and download the file again"


@dataclass(frozen=True)
class Kind:
    """A kind of file. what: its name with the article, such as "an Excel workbook". group: selects the remedy."""

    what: str
    group: str

    def in_place_of_table(self) -> str:
        """Return what the file is, and how to get a CSV file."""
        remedy = {
            _ARCHIVE: "unpack it and name the CSV file in it",
            _WORKBOOK: "open it and save the sheet as CSV UTF-8",
            _PAGE: f"{_DOWNLOAD}, or open it in a spreadsheet and save it as CSV UTF-8",
        }
        return f"is {self.what}, not a CSV file; {remedy.get(self.group) or self._same('save the table as CSV UTF-8')}"

    def in_place_of_archive(self) -> str:
        """Return what the file is, and how to get a folder or an archive of images."""
        remedy = {_ARCHIVE: "unpack it and give the folder", _PAGE: _DOWNLOAD}
        return f"is {self.what}; {remedy.get(self.group) or self._same('give the folder or archive of the images')}"

    def in_place_of_folder(self) -> str:
        """Return what the file is, and how to get a folder of images."""
        remedy = {_ARCHIVE: "unpack it and give the folder", _PAGE: _DOWNLOAD}
        return f"is {self.what}, not a folder; {remedy.get(self.group) or self._same('give the folder of the images')}"

    def in_place_of_image(self) -> str:
        """Return what the file is, and how to get the image; for an image of a kind that we read, what is wrong."""
        if self.group == _IMAGE:
            return f"is damaged: {self.what} with a broken header"
        if self.group == _PICTURE:
            also = "install pillow-heif, or " if self.what == _HEIC_PHOTO else ""
            return f"is {self.what}, which cannot be read; {also}convert it to JPEG or PNG"
        remedy = {_ARCHIVE: "unpack it", _PAGE: _DOWNLOAD}
        return f"is {self.what}, not an image; {remedy.get(self.group) or self._same('remove it')}"

    def _same(self, default: str) -> str:
        """Return the remedy that does not depend on the use of the file, or else `default`."""
        remedy = {
            _LFS: "get the file itself with `git lfs pull`",
            _ANNEX: "get the file itself with `git annex get`",
            _ZEROS: "download it again",
        }
        return remedy.get(self.group, default)


_MAGIC = (
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook of the old kind, or another Office file", _WORKBOOK),
    (b"Rar!\x1a\x07", "a RAR archive", _ARCHIVE),
    (b"7z\xbc\xaf\x27\x1c", SEVEN_ZIP, _ARCHIVE),
    (b"\x1f\x8b", "a gzip file (.gz, .tar.gz)", _ARCHIVE),
    (b"BZh91AY&SY", "a bzip2 file (.bz2, .tar.bz2)", _ARCHIVE),
    (b"\xfd7zXZ\0", "an xz file (.xz, .tar.xz)", _ARCHIVE),
    (b"\x28\xb5\x2f\xfd", "a zstd file (.zst, .tar.zst)", _ARCHIVE),
    (b"MSCF\0\0\0\0", "a cabinet archive", _ARCHIVE),
    (b"%PDF-", "a PDF", _OTHER),
    (b"{\\rtf", "an RTF document", _OTHER),
    (b"\x93NUMPY", "a NumPy array", _OTHER),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _OTHER),
    (b"PAR1\x15", "a Parquet file", _OTHER),
    (b"ARROW1\0\0", "an Arrow file (Feather)", _OTHER),
    (b"FEA1", "a Feather file", _OTHER),
    (b"$FL2@(#)", "an SPSS file", _OTHER),
    (b"<stata_dta>", "a Stata file", _OTHER),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file", _OTHER),
    (b"RDX2\n", "an R data file", _OTHER),
    (b"RDX3\n", "an R data file", _OTHER),
    *((bytes((0x80, protocol)), "a pickle file of Python", _OTHER) for protocol in range(2, 6)),
    (b"SQLite format 3\0", "a SQLite database", _OTHER),
    (b"\x89PNG\r\n\x1a\n", "a PNG image", _IMAGE),
    (b"\xff\xd8\xff", "a JPEG image", _IMAGE),
    (b"8BPS", "a Photoshop file", _PICTURE),
    (b"version https://git-lfs", "a Git LFS pointer, a note of where the file is", _LFS),
    (b"version https://hawser", "a Git LFS pointer, a note of where the file is", _LFS),
    (b"/annex/objects/", "a git-annex pointer, a note of where the file is", _ANNEX),
)
_IN_ZIP = (
    (b"application/vnd.oasis.opendocument.spreadsheet", "an OpenDocument spreadsheet", _WORKBOOK),
    (b"application/vnd.oasis.opendocument", "an OpenDocument file", _OTHER),
    (b"xl/workbook", "an Excel workbook", _WORKBOOK),
    (b"xl/worksheets", "an Excel workbook", _WORKBOOK),
    (b"Index/Tables", "a Numbers spreadsheet", _WORKBOOK),
    (b"Index/CalculationEngine", "a Numbers spreadsheet", _WORKBOOK),
    (b"Index/Document.iwa", "a Numbers, Pages or Keynote file", _WORKBOOK),
    (b"word/document", "a Word document", _OTHER),
    (b"ppt/presentation", "a PowerPoint file", _OTHER),
)
_HEIC_PHOTO = "a HEIC photo"
_HEIC = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
# The first member of an Office file, by which it differs from an archive that holds one.
_FIRST_IN_OFFICE = (
    b"[Content_Types]", b"_rels/", b"docProps/", b"xl/", b"word/", b"ppt/", b"mimetype", b"Index/", b"Data/",
    b"Metadata/", b"preview",
)  # fmt: skip
# Atomic (?>...): n comments that nothing follows would otherwise be tried in 2^n ways.
_HTML = re.compile(
    rb"\s*(?>(?:<!--.*?-->\s*)*)(<\?xml[^>]*>\s*)?(<!doctype\s+html|<html|<head|<body|<script|<table)", re.I | re.S
)


def kind_of(head: bytes, tail: bytes = b"") -> Kind | None:
    """Return the kind of a file that starts with `head` and ends with `tail`; None for text and unknown kinds."""
    if head[:4] in (b"PK\3\4", b"PK\5\6", b"PK\7\x08"):
        # A zip has the name of each member before its content, and once more at the end.
        if head[30 : 30 + int.from_bytes(head[26:28], "little")].startswith(_FIRST_IN_OFFICE):
            office = next((Kind(*rest) for mark, *rest in _IN_ZIP if mark in head or mark in tail), None)
            return office or Kind(ZIP, _ARCHIVE)
        # NumPy and PyTorch save several arrays as a zip.
        first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        if first.endswith((b".npy", b"/data.pkl")):
            return Kind("NumPy arrays (.npz)" if first.endswith(b".npy") else "a PyTorch file", _OTHER)
        return Kind(ZIP, _ARCHIVE)
    for magic, what, group in _MAGIC:
        if head.startswith(magic):
            return Kind(what, group)
    if head.startswith(b"PAR1") and tail.endswith(b"PAR1"):
        return Kind("a Parquet file", _OTHER)
    if re.match(rb"(\.\./)*\.git/annex/objects/", head):  # a symlink, on a disk without symlinks
        return Kind("a git-annex pointer, a note of where the file is", _ANNEX)
    if head[257:262] == b"ustar":
        return Kind("a tar archive", _ARCHIVE)
    if len(head) >= 16 and not head.strip(b"\0"):
        return Kind("only zero bytes, like an unfinished download", _ZEROS)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC:
        return Kind(_HEIC_PHOTO, _PICTURE)
    if head[128:132] == b"DICM":
        return Kind("a DICOM file", _PICTURE)
    text = head.removeprefix(b"\xef\xbb\xbf")
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):  # UTF-16
        text = text.replace(b"\0", b"")[2:]
    if _HTML.match(text):
        return Kind("a web page (HTML)", _PAGE)
    start = text[:4096].lstrip()
    if start.startswith(b"<?xml") and b"urn:schemas-microsoft-com:office:spreadsheet" in start:
        return Kind("an Excel workbook (XML)", _WORKBOOK)
    if start.startswith(b"<?xml"):
        return Kind("an XML document, such as a server's error", _PAGE)
    if re.match(rb'\{\s*("|\})|\[\s*[\[{]', start):
        return Kind("JSON", _OTHER)
    return None


def file_kind(path: Path) -> Kind | None:
    """Return the kind of the file `path`; None if it is unknown or not a regular file. Raise OSError."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(HEAD)
        file.seek(max(0, path.stat().st_size - HEAD))
        kind = kind_of(head, file.read(HEAD))
    # Of the parts of a split archive, only the first has a signature.
    part = re.search(r"\.(7z|zip|rar|tar|gz)\.\d+$|\.part\d+\.rar$|\.[zr]\d\d$", path.name.lower())
    return Kind("a part of a split archive", _ARCHIVE) if part else kind
