"""Unpacking the downloads of d2l.download_extract."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from cnnlab.d2l.hub import extract
from cnnlab.io.errors import CnnlabError

KINDS = [".zip", ".tar", ".tar.gz"]


def pack(path: Path, name: str, content: bytes = b"x") -> Path:
    """Write an archive with one member. A member named `link` is a symlink to /etc/passwd."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.external_attr = 0o120777 << 16 if name == "link" else 0
            packed.writestr(info, content, zipfile.ZIP_DEFLATED)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if name == "link":
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_extract(tmp_path: Path, kind: str) -> None:
    extract(pack(tmp_path / f"a{kind}", "few/1.txt"), tmp_path)
    assert (tmp_path / "few" / "1.txt").read_bytes() == b"x"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "link"])
def test_nothing_is_written_outside_the_folder(tmp_path: Path, kind: str, name: str) -> None:
    path = pack(tmp_path / f"a{kind}", name)
    (tmp_path / "in").mkdir()
    with pytest.raises(CnnlabError) as caught:
        extract(path, tmp_path / "in")
    assert path.name in str(caught.value)
    assert {f.name for f in tmp_path.rglob("*")} == {"in", path.name}


@pytest.mark.parametrize("kind", [".zip", ".tar.gz"])
def test_a_bomb_is_not_unpacked(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a{kind}"
    if kind == ".zip":
        pack(path, "1.txt")
        content = bytearray(path.read_bytes())
        at = content.rindex(b"PK\1\2") + 24  # the declared size
        content[at : at + 4] = (2 << 30).to_bytes(4, "little")
        path.write_bytes(content)
    else:
        with tarfile.open(path, "w:gz") as tar:
            info = tarfile.TarInfo("1.txt")
            info.size = 2 << 30
            tar.addfile(info)  # the content does not matter: the size is checked first
    with pytest.raises(CnnlabError, match="1,073,741,824 bytes"):
        extract(path, tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_is_one_line(tmp_path: Path, kind: str) -> None:
    path = pack(tmp_path / f"a{kind}", "1.txt", bytes(5000))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(CnnlabError) as caught:
        extract(path, tmp_path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
