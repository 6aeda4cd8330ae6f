"""Recognize a file by its first bytes, so that an error can name the actual kind of file.

The name proves nothing: workbooks are renamed to .csv, and browsers save login pages as train.zip.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

HEAD = 1 << 16  # bytes that suffice, at either end of a file
ZIP, SEVEN_ZIP = "a zip archive", "a 7z archive"  # the archives that we read

_DOWNLOAD = "log in with a browser and download the file again"


@dataclass(frozen=True)
class Kind:
    """A kind of file. what: its name with the article, such as "an Excel workbook". group: selects the remedy."""

    what: str
    group: str  # archive, workbook, page, picture, image, zeros, lfs, annex or other

    def in_place_of_table(self) -> str:
        """Return what the file is, and how to get a CSV file."""
        remedy = self._remedy(
            "save the table as CSV UTF-8",
            archive="unpack it and name the CSV file in it",
            workbook="open it and save the sheet as CSV UTF-8",
            page=f"{_DOWNLOAD}, or open it in a spreadsheet and save it as CSV UTF-8",
        )
        return f"is {self.what}, not a CSV file; {remedy}"

    def in_place_of_archive(self) -> str:
        """Return what the file is, and how to get a folder or an archive of images."""
        remedy = self._remedy("give the folder or archive of the images", archive="unpack it and give the folder")
        return f"is {self.what}; {remedy}"

    def in_place_of_folder(self) -> str:
        """Return what the file is, and how to get a folder of images."""
        remedy = self._remedy("give the folder of the images, as folder:PATH", archive="unpack it and give folder:PATH")
        return f"is {self.what}, not a folder; {remedy}"

    def in_place_of_image(self) -> str:
        """Return what the file is, and how to get the image; for an image of a kind that we read, what is wrong."""
        if self.group == "image":
            return f"is damaged: {self.what} with a broken header"
        if self.group == "picture":
            also = "install pillow-heif, or " if self.what == _HEIC_PHOTO else ""
            return f"is {self.what}, which cannot be read; {also}convert it to JPEG or PNG"
        return f"is {self.what}, not an image; {self._remedy('remove it', archive='unpack it')}"

    def _remedy(self, default: str, **of_group: str) -> str:
        """Return the remedy for the file's group: one that depends on its use, or one that does not, or `default`."""
        remedies = {
            "page": _DOWNLOAD,
            "lfs": "get the file itself with `git lfs pull`",
            "annex": "get the file itself with `git annex get`",
            "zeros": "download it again",
            **of_group,
        }
        return remedies.get(self.group, default)


_MAGIC = (
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook of the old kind, or another Office file", "workbook"),
    (b"Rar!\x1a\x07", "a RAR archive", "archive"),
    (b"7z\xbc\xaf\x27\x1c", SEVEN_ZIP, "archive"),
    (b"\x1f\x8b", "a gzip file (.gz, .tar.gz)", "archive"),
    (b"BZh91AY&SY", "a bzip2 file (.bz2, .tar.bz2)", "archive"),
    (b"\xfd7zXZ\0", "an xz file (.xz, .tar.xz)", "archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd file (.zst, .tar.zst)", "archive"),
    (b"MSCF\0\0\0\0", "a cabinet archive", "archive"),
    (b"%PDF-", "a PDF", "other"),
    (b"{\\rtf", "an RTF document", "other"),
    (b"\x93NUMPY", "a NumPy array", "other"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "other"),
    (b"PAR1\x15", "a Parquet file", "other"),
    (b"ARROW1\0\0", "an Arrow file (Feather)", "other"),
    (b"FEA1", "a Feather file", "other"),
    (b"$FL2@(#)", "an SPSS file", "other"),
    (b"<stata_dta>", "a Stata file", "other"),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file", "other"),
    (b"RDX2\n", "an R data file", "other"),
    (b"RDX3\n", "an R data file", "other"),
    *((bytes((0x80, protocol)), "a pickle file of Python", "other") for protocol in range(2, 6)),
    (b"SQLite format 3\0", "a SQLite database", "other"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image", "image"),
    (b"\xff\xd8\xff", "a JPEG image", "image"),
    (b"8BPS", "a Photoshop file", "picture"),
    (b"version https://git-lfs", "a Git LFS pointer, a note of where the file is", "lfs"),
    (b"version https://hawser", "a Git LFS pointer, a note of where the file is", "lfs"),
    (b"/annex/objects/", "a git-annex pointer, a note of where the file is", "annex"),
)
_IN_ZIP = (
    (b"application/vnd.oasis.opendocument.spreadsheet", "an OpenDocument spreadsheet", "workbook"),
    (b"application/vnd.oasis.opendocument", "an OpenDocument file", "other"),
    (b"xl/workbook", "an Excel workbook", "workbook"),
    (b"xl/worksheets", "an Excel workbook", "workbook"),
    (b"Index/Tables", "a Numbers spreadsheet", "workbook"),
    (b"Index/CalculationEngine", "a Numbers spreadsheet", "workbook"),
    (b"Index/Document.iwa", "a Numbers, Pages or Keynote file", "workbook"),
    (b"word/document", "a Word document", "other"),
    (b"ppt/presentation", "a PowerPoint file", "other"),
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
        first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        if first.startswith(_FIRST_IN_OFFICE):
            office = next((Kind(*rest) for mark, *rest in _IN_ZIP if mark in head or mark in tail), None)
            return office or Kind(ZIP, "archive")
        # NumPy and PyTorch save several arrays as a zip.
        if first.endswith((b".npy", b"/data.pkl")):
            return Kind("NumPy arrays (.npz)" if first.endswith(b".npy") else "a PyTorch file", "other")
        return Kind(ZIP, "archive")
    for magic, what, group in _MAGIC:
        if head.startswith(magic):
            return Kind(what, group)
    if head.startswith(b"PAR1") and tail.endswith(b"PAR1"):
        return Kind("a Parquet file", "other")
    if re.match(rb"(\.\./)*\.git/annex/objects/", head):  # a symlink, on a disk without symlinks
        return Kind("a git-annex pointer, a note of where the file is", "annex")
    if head[257:262] == b"ustar":
        return Kind("a tar archive", "archive")
    if len(head) >= 16 and not head.strip(b"\0"):
        return Kind("only zero bytes, like an unfinished download", "zeros")
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC:
        return Kind(_HEIC_PHOTO, "picture")
    if head[128:132] == b"DICM":
        return Kind("a DICOM file", "picture")
    text = head.removeprefix(b"\xef\xbb\xbf")
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):  # UTF-16
        text = text.replace(b"\0", b"")[2:]
    if _HTML.match(text):
        return Kind("a web page (HTML)", "page")
    start = text[:4096].lstrip()
    if start.startswith(b"<?xml") and b"urn:schemas-microsoft-com:office:spreadsheet" in start:
        return Kind("an Excel workbook (XML)", "workbook")
    if start.startswith(b"<?xml"):
        return Kind("an XML document, such as a server's error", "page")
    if re.match(rb'\{\s*("|\})|\[\s*[\[{]', start):
        return Kind("JSON", "other")
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
    return Kind("a part of a split archive", "archive") if part else kind
