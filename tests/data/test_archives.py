"""Archives from ordinary users and from attackers."""

from __future__ import annotations

import io
import random
import re
import stat
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from cnnlab.competition.prepare_store import prepare_store
from cnnlab.competition.submission import read_pairs
from cnnlab.data import load_images
from cnnlab.data.archives import Archive, archive_ending, base, open_archive
from cnnlab.io.errors import CnnlabError
from cnnlab.io.walk import image_files

py7zr = pytest.importorskip("py7zr")

KINDS = [".7z", ".zip"]
Files = list[tuple[str, bytes]]


def png(level: int = 7, size: tuple[int, int] = (4, 4)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (level % 256, level // 256, 0)).save(out, "png")
    return out.getvalue()


def pack(path: Path, files: Files) -> Path:
    """Write `files` into an archive, whose kind its name tells. The files may have any names."""
    kind = archive_ending(path.name)
    if kind == ".7z":
        with py7zr.SevenZipFile(path, "w") as seven:
            for number, (_, content) in enumerate(files):
                seven.writestr(content, f"{number}")
            # py7zr refuses to write names that it would refuse to read, so set them afterwards.
            for info, (name, _) in zip(seven.header.files_info.files if files else [], files, strict=True):
                info["filename"] = name
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, content in files:
                zipped.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


def contents(path: Path) -> Files:
    with closing(open_archive(path)) as archive:
        return [(archive.members[i].name, content) for i, content in archive.read()]


def refusal(path: Path, read: Callable[[Archive], object] = lambda archive: list(archive.read())) -> str:
    """Return the error, one line, with which an archive is refused on opening or reading."""
    before = sorted(path.parent.parent.rglob("*"))
    with pytest.raises(CnnlabError) as caught, closing(open_archive(path)) as archive:
        read(archive)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    assert text.isprintable()
    assert sorted(path.parent.parent.rglob("*")) == before  # nothing was written
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_its_images_in_order(tmp_path: Path, kind: str) -> None:
    images = [(f"train/{name}.png", png(i)) for i, name in enumerate(["10", "2", "a b", "ü"])]
    others = [("train/readme.txt", b"x"), ("__MACOSX/train/._2.png", b"x"), ("train/.hidden.png", b"x")]
    path = pack(tmp_path / f"train{kind}", images[:2] + others + images[2:])
    with closing(open_archive(path)) as archive:
        assert [m.name for m in archive.members] == [name for name, _ in images]
        assert [m.size for m in archive.members] == [len(content) for _, content in images]
        assert archive.ignored == 3
        assert list(archive.read()) == list(enumerate(content for _, content in images))
        assert list(archive.read({1, 3})) == [(1, images[1][1]), (3, images[3][1])]  # again, from the start
        assert archive.member_label(0) == f"train{kind}: train/10.png"


def test_a_folder_is_read_like_an_archive(tmp_path: Path) -> None:
    for name in ("b.png", "sub/a.png", "sub/x.txt", ".c.png"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).write_bytes(png())
    assert contents(tmp_path / "train") == [("b.png", png()), ("sub/a.png", png())]


def test_7z_of_several_blocks_and_codecs_is_read(tmp_path: Path) -> None:
    rng = random.Random(0)
    files = [(f"{i}.png", rng.randbytes(200_000 + i)) for i in range(5)]  # some longer than one unpacking step
    for codecs in (["LZMA2"], ["LZMA"], ["BZIP2"], ["COPY"], ["BROTLI"], ["PPMD"], ["X86", "LZMA"], ["DELTA", "LZMA2"]):
        path = tmp_path / f"{'-'.join(codecs)}.7z"
        more = {"PPMD": {"order": 6, "mem": 20}}
        filters = [{"id": getattr(py7zr, f"FILTER_{codec}"), **more.get(codec, {})} for codec in codecs]
        with py7zr.SevenZipFile(path, "w", filters=filters) as seven:
            for name, content in files[:3]:
                seven.writestr(content, name)
        with py7zr.SevenZipFile(path, "a") as seven:
            for name, content in files[3:]:
                seven.writestr(content, name)
        assert contents(path) == files, codecs


def test_a_7z_whose_last_file_has_a_negative_size_is_refused(tmp_path: Path) -> None:
    # The last file has what the other sizes leave of the stream, so a larger size of the first makes it negative.
    from fuzzing import correct_7z

    with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as seven:
        seven.set_encoded_header_mode(False)
        for name, size in (("1.png", 1000), ("2.png", 2000)):
            seven.writestr(bytes(size), name)
    content = (tmp_path / "a.7z").read_bytes()
    assert content.count((0x83E8).to_bytes(2, "big")) == 1  # 1000, as 7z encodes it
    (tmp_path / "a.7z").write_bytes(correct_7z(content.replace((0x83E8).to_bytes(2, "big"), b"\x8f\xff")))
    assert re.search(r"damaged.*2\.png.*size", refusal(tmp_path / "a.7z"))


def test_directories_are_skipped_silently(tmp_path: Path) -> None:
    (tmp_path / "train" / "x.png").mkdir(parents=True)  # a folder named like an image
    (tmp_path / "train" / "1.png").write_bytes(png())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        for file in (tmp_path / "train", tmp_path / "train" / "x.png", tmp_path / "train" / "1.png"):
            zipped.write(file, file.relative_to(tmp_path))
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as seven:
        seven.writeall(tmp_path / "train", "train")
    for kind in KINDS:
        with closing(open_archive(tmp_path / f"a{kind}")) as archive:
            assert [m.name for m in archive.members] == ["train/1.png"]
            assert archive.ignored == 0


@pytest.mark.parametrize("kind", KINDS)
def test_paths_that_lead_outside_are_refused(tmp_path: Path, kind: str) -> None:
    names = ["/etc/1.png", "../1.png", "train/../../1.png", "C:/1.png", "c:1.png", "..\\1.png", "/x.txt"]
    for name in [*names, "train\\1.png"] if kind == ".zip" else names:  # py7zr reads the last as train/1.png
        assert "outside" in refusal(pack(tmp_path / f"a{kind}", [("0.png", png()), (name, png())]))


@pytest.mark.parametrize("kind", KINDS)
def test_two_members_with_the_same_name_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.warns() if kind == ".zip" else NoContext():  # zipfile warns, too
        path = pack(tmp_path / f"a{kind}", [("1.png", png()), ("1.png", png(3))])
    assert re.search(r"1\.png.*twice", refusal(path))


@pytest.mark.parametrize("kind", KINDS)
def test_names_cannot_add_lines_or_control_the_terminal(tmp_path: Path, kind: str) -> None:
    with pytest.warns() if kind == ".zip" else NoContext():
        path = pack(tmp_path / f"a{kind}", [("1\n\x1b[2J.png", png())] * 2)
    assert re.search(r"1\\n\\u001b\[2J\.png.*twice", refusal(path))


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    for number, kind in enumerate([stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK]):
        what = "a link" if kind == stat.S_IFLNK else "a device"
        info = zipfile.ZipInfo("1.png")
        info.external_attr = (kind | 0o644) << 16
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as zipped:
            zipped.writestr(info, b"/etc/passwd")
        assert what in refusal(tmp_path / f"{number}.zip")
        with py7zr.SevenZipFile(tmp_path / f"{number}.7z", "w") as seven:
            seven.writestr(b"/etc/passwd", "1.png")
            seven.header.files_info.files[0]["attributes"] = (kind | 0o644) << 16 | 0x8000
        assert what in refusal(tmp_path / f"{number}.7z")


@pytest.mark.parametrize("kind", KINDS)
def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MEMBER_LIMIT", 1 << 20)
    monkeypatch.setattr(base, "TOTAL_LIMIT", 3 << 20)
    one = pack(tmp_path / f"one{kind}", [("0.png", png()), ("1.png", bytes((1 << 20) + 1))])
    assert re.search(r"1\.png.*1,048,577 bytes", refusal(one, lambda archive: pytest.fail("it was opened")))
    many = pack(tmp_path / f"many{kind}", [(f"{i}.png", bytes(1 << 20)) for i in range(4)])
    assert "3,145,728 bytes" in refusal(many, lambda archive: pytest.fail("it was opened"))
    hidden = pack(tmp_path / f"hidden{kind}", [("x.txt", bytes(9 << 20)), ("1.png", png())])
    assert "3,145,728 bytes" in refusal(hidden, lambda archive: pytest.fail("it was opened"))


@pytest.mark.parametrize("size", [5, 100_000_000, 0xFFFFFFF0])
def test_a_zip_with_false_sizes_is_refused(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "a.zip", [("1.png", bytes(100_000))])
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\1\2") + 24  # the uncompressed size in the central directory
    content[place : place + 4] = size.to_bytes(4, "little")
    path.write_bytes(content)
    monkeypatch.setattr("cnnlab.data.archives.zip.MEMBER_LIMIT", 200_000_000)
    monkeypatch.setattr(base, "MEMBER_LIMIT", 200_000_000)
    refusal(path)


def test_a_7z_with_false_sizes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.7z"
    with py7zr.SevenZipFile(path, "w") as seven:
        seven.set_encoded_header_mode(False)
        for i in range(3):
            seven.writestr(bytes([i]) * 999, f"{i}.png")
    good = path.read_bytes()
    header = int.from_bytes(good[12:20], "little") + 32
    changed = 0
    for at in range(header, len(good) - 1):
        if good[at : at + 2] == b"\x83\xe7":  # 999, as 7z encodes it
            bad = bytearray(good)
            bad[at + 1] += 1
            bad[28:32] = zlib.crc32(bad[header:]).to_bytes(4, "little")
            bad[8:12] = zlib.crc32(bad[12:32]).to_bytes(4, "little")
            path.write_bytes(bad)
            assert "damaged" in refusal(path)
            changed += 1
    assert changed >= 2


def test_encrypted_archives_are_refused(tmp_path: Path) -> None:
    for headers in (False, True):
        with py7zr.SevenZipFile(tmp_path / "a.7z", "w", password="p", header_encryption=headers) as seven:
            seven.writestr(png(), "1.png")
        assert "encrypted" in refusal(tmp_path / "a.7z")
    path = pack(tmp_path / "a.zip", [("1.png", png())])
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    assert "encrypted" in refusal(path)


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_truncated_anywhere_is_refused(tmp_path: Path, kind: str) -> None:
    rng = random.Random(0)
    path = pack(tmp_path / f"a{kind}", [(f"{i}.png", rng.randbytes(3000)) for i in range(4)])
    good = path.read_bytes()
    end = len(good) - 1
    for length in sorted({0, 1, 5, 31, 32, 100, *range(0, end, 2048), end - 10, *rng.sample(range(end), 6)}):
        path.write_bytes(good[:length])
        assert "damaged" in refusal(path), length


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bits_raise_only_cnnlab_errors(tmp_path: Path, kind: str) -> None:
    rng = random.Random(1)
    files = [(f"{i}.png", rng.randbytes(500)) for i in range(3)]
    path = pack(tmp_path / f"a{kind}", files)
    good = path.read_bytes()
    for _ in range(100):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        try:
            found = contents(path)
        except CnnlabError as error:
            assert str(error).isprintable()
        else:  # only a name or a time was changed
            assert {content for _, content in found} <= {content for _, content in files}


def test_empty_archives_hold_no_images(tmp_path: Path) -> None:
    for kind in KINDS:
        path = pack(tmp_path / f"a{kind}", [])
        with closing(open_archive(path)) as archive:
            assert archive.members == []
            assert list(archive.read()) == []
    assert contents(pack(tmp_path / "b.7z", [("1.png", b""), ("2.png", png())])) == [("1.png", b""), ("2.png", png())]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's account of memory")
def test_reading_a_7z_of_small_files_takes_little_memory(tmp_path: Path) -> None:
    """py7zr's own loop would hold all 16 MiB at the end."""
    code = (
        "import re; from pathlib import Path; from contextlib import closing\n"
        "from cnnlab.data.archives import open_archive\n"
        "def held(): return int(re.search('Anonymous: *([0-9]+)', Path('/proc/self/smaps_rollup').read_text())[1])\n"
        "with closing(open_archive(Path('a.7z'))) as archive:\n"
        "    before = held(); grown = [held() - before for i, _ in archive.read() if i % 10 == 0]\n"
        "    print(max(grown))"
    )
    content = random.Random(0).randbytes(16 << 20)
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w", filters=[{"id": py7zr.FILTER_LZMA2, "preset": 0}]) as seven:
        for at in range(0, len(content), 1 << 16):
            seven.writestr(content[at : at + (1 << 16)], f"{at}.png")
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(said.stdout) < 8_000  # KiB


def test_7z_methods_without_a_bound_on_memory_are_refused(tmp_path: Path) -> None:
    for codec in ("DEFLATE", "ZSTD"):
        with py7zr.SevenZipFile(tmp_path / "a.7z", "w", filters=[{"id": getattr(py7zr, f"FILTER_{codec}")}]) as seven:
            seven.writestr(png(), "1.png")
        assert "compression method" in refusal(tmp_path / "a.7z")


def test_zip_methods_without_a_bound_on_memory_are_refused(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as zipped:
            zipped.writestr("1.png", png())
        assert "compression method" in refusal(tmp_path / "a.zip")


def write_7z_with_list(path: Path, members: bytes = b"", method: str = "LZMA2") -> Path:
    """Write a 7z archive of one image whose packed list of members is `members`. Default: the correct list."""
    with py7zr.SevenZipFile(path, "w") as seven:
        seven.set_encoded_header_mode(False)
        seven.writestr(png(), "1.png")
    plain = path.read_bytes()
    end = 32 + int.from_bytes(plain[12:20], "little")
    members = members or plain[end:]
    compressor = py7zr.compressor.SevenZipCompressor([{"id": getattr(py7zr, f"FILTER_{method}")}])
    packed, record = io.BytesIO(), io.BytesIO()
    compressor.compress(io.BytesIO(members), packed)
    compressor.flush(packed)
    info = py7zr.archiveinfo.HeaderStreamsInfo()
    folder = py7zr.archiveinfo.Folder()
    folder.coders, folder.unpacksizes = compressor.coders, [len(members)]
    info.unpackinfo.folders = [folder]
    info.packinfo.packpos, info.packinfo.numstreams, info.packinfo.enable_digests = end - 32, 1, False
    info.packinfo.packsizes = [len(packed.getvalue())]
    info.write(record)
    start = (end - 32 + len(packed.getvalue())).to_bytes(8, "little") + len(record.getvalue()).to_bytes(8, "little")
    start += zlib.crc32(record.getvalue()).to_bytes(4, "little")
    head = plain[:8] + zlib.crc32(start).to_bytes(4, "little") + start
    path.write_bytes(head + plain[32:end] + packed.getvalue() + record.getvalue())
    return path


def test_a_7z_whose_list_of_members_is_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert contents(write_7z_with_list(tmp_path / "a.7z")) == [("1.png", png())]
    million = b"\1\5\xf0" + (1 << 20).to_bytes(4, "little") + bytes(1 << 20)  # a million files without names
    bomb = write_7z_with_list(tmp_path / "b.7z", million)
    assert bomb.stat().st_size < 3000
    odd = write_7z_with_list(tmp_path / "c.7z", million[:99], "ZSTD")
    plain = bytearray(bomb.read_bytes()) + bytes(1 << 19)
    plain[12:28] = (0).to_bytes(8, "little") + (1 << 19).to_bytes(8, "little")
    (tmp_path / "d.7z").write_bytes(plain)
    monkeypatch.setattr(py7zr, "SevenZipFile", lambda path: pytest.fail("py7zr was asked"))
    assert re.search("members.*1,048,583 bytes", refusal(bomb))
    assert re.search(r"members.*c\.7z.*compression method", refusal(odd))
    assert re.search("members.*524,288 bytes", refusal(tmp_path / "d.7z"))


def test_a_zip_with_undecodable_names_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", [("ü.png", png())])
    content = path.read_bytes()
    for bad in (content.replace("ü".encode(), b"\xff\xff"), content.replace("ü".encode(), b"\xff\xff", 1)):
        path.write_bytes(bad)
        assert "damaged" in refusal(path)


def test_links_in_a_folder_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "1.png").write_bytes(png())
    (tmp_path / "train" / "2.png").symlink_to("a/1.png")
    (tmp_path / "train" / "round").symlink_to(tmp_path / "train")
    (tmp_path / "link").symlink_to("train")  # the folder itself may be a symlink
    assert contents(tmp_path / "link") == [("2.png", png()), ("a/1.png", png())]
    (tmp_path / "mine.png").write_bytes(png(3))
    (tmp_path / "private").mkdir()
    for target in ("mine.png", "private"):
        link = tmp_path / "train" / "a" / target
        link.symlink_to(tmp_path / target)
        with pytest.raises(CnnlabError, match=f"{target}'.*link.*outside.*train"):
            open_archive(tmp_path / "train")
        assert list(image_files(tmp_path / "train"))  # the source `folder:` follows symlinks
        link.unlink()


def test_files_that_are_not_archives_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.rar").write_bytes(b"Rar!")
    assert ".7z or .zip" in refusal(tmp_path / "a.rar")
    for kind in KINDS:
        (tmp_path / f"a{kind}").write_bytes(b"<html>Sign in</html>" * 100)
        assert "web page (HTML)" in refusal(tmp_path / f"a{kind}")
        (tmp_path / f"a{kind}").write_bytes(b"")
        assert "empty" in refusal(tmp_path / f"a{kind}")
        with pytest.raises(CnnlabError, match=rf"none\{kind} .*folder"):
            open_archive(tmp_path / f"none{kind}")


def workbook(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("[Content_Types].xml", "x")
        zipped.writestr("xl/workbook.xml", "x")
    return path


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.rar", b"Rar!\x1a\x07\1\0", "a RAR archive"),
        ("a.tar.gz", b"\x1f\x8b\x08\0", "a gzip file"), ("a.tgz", b"\x1f\x8b\x08\0", "a gzip file"),
        ("a.tar", bytes(257) + b"ustar\x0000", "a tar archive"), ("a.tar.xz", b"\xfd7zXZ\0\0", "an xz file"),
        ("a.zst", b"\x28\xb5\x2f\xfd", "a zstd file"), ("a.bz2", b"BZh91AY&SY", "a bzip2 file"),
        ("a.7z.001", b"7z\xbc\xaf\x27\x1c\0\4", "a part of a split archive"), ("a.7z.002", b"\3\2\1", "a part of a split"),
        ("a.z01", b"PK\7\x08", "a part of a split archive"), ("a.part1.rar", b"Rar!\x1a\x07\0", "a part of a split archive"),
        ("a.zip", b"\x1f\x8b\x08\0", "a gzip file"), ("a.7z", b"Rar!\x1a\x07\0", "a RAR archive"),
        ("a.zip", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.7z", bytes(9999), "zero bytes"), ("a.zip", b"<?xml version='1.0'?><Error><Code>AccessDenied", "XML document"),
        ("a.zip", b"\xef\xbb\xbf<!DOCTYPE html>", "a web page"), ("a.zip", b'{"message": "Forbidden"}', "JSON"),
    ],
)  # fmt: skip
def test_files_given_instead_of_an_archive_are_named(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert what in refusal(path)
    with pytest.raises(CnnlabError, match=what):
        load_images(f"folder:{path}", "train")
    with pytest.raises(CnnlabError, match=what):
        load_images(str(path), "train")
    with pytest.raises(CnnlabError, match=what):
        prepare_store(path, store=tmp_path / "store")
    with pytest.raises(CnnlabError):
        read_pairs(path)


def test_a_workbook_is_not_read_as_an_archive_of_images(tmp_path: Path) -> None:
    for name in ("a.xlsx", "a.zip"):
        assert "an Excel workbook" in refusal(workbook(tmp_path / name))


def test_archives_are_identified_by_their_content(tmp_path: Path) -> None:
    for kind, name in ((".zip", "a.7z"), (".7z", "a.zip"), (".zip", "a")):
        path = pack(tmp_path / f"b{kind}", [("1.png", png())]).rename(tmp_path / name)
        assert contents(path) == [("1.png", png())]


@pytest.mark.parametrize("codec", ["gbk", "utf-8", "cp437"])
def test_zip_names_without_an_encoding_flag_are_decoded(tmp_path: Path, codec: str) -> None:
    names = ["Müller.png", "Ärger/ö.png"] if codec == "cp437" else ["猫/张三.png", "狗/李四.png"]
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        for i, name in enumerate(names):
            zipped.writestr(f"{i}" * len(name.encode(codec)), png(i))
    content = path.read_bytes()
    for i, name in enumerate(names):
        raw = name.encode(codec)
        content = content.replace(f"{i}".encode() * len(raw), raw)
    path.write_bytes(content)
    assert contents(path) == [(name, png(i)) for i, name in enumerate(names)]


def test_without_py7zr_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "a.7z", [("1.png", png())])
    monkeypatch.setitem(sys.modules, "py7zr", None)
    assert "pip install 'cnnlab[kaggle]'" in refusal(path)


class NoContext:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...
