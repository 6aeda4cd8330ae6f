"""Untrusted input does no harm: one case for each fault that was found or is conceivable.

tests/test_fuzz.py tests the same parsers with random input, tests/data/test_archives.py tests archives.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import struct
import subprocess
import sys
import unicodedata
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

import cnnlab as package
from cnnlab import Recipe, train
from cnnlab.chapter.experiments import markdown
from cnnlab.competition.layout import Layout, Place
from cnnlab.competition.prepare_store import prepare_store
from cnnlab.data import load_images
from cnnlab.data.archives import open_archive
from cnnlab.data.imageset import SourceOptions
from cnnlab.device.determinism import random_state, set_random_state
from cnnlab.device.hardware import pick_device
from cnnlab.io.csv import read_header, read_table
from cnnlab.io.decode import ENDINGS, BadImage, Decoding, TooLarge, bombs_refused, decode
from cnnlab.io.errors import CnnlabError
from cnnlab.io.files import digest, read_checked, read_json, write_checked, write_json
from cnnlab.io.schema import COUNT, NUMBER, Number, validation_error
from cnnlab.io.text import cell, escape, escape_lines
from cnnlab.models import build_model
from cnnlab.training.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights
from cnnlab.training.folders import check_name
from cnnlab.training.locks import locked
from cnnlab.training.optim import make_optimizer
from cnnlab.training.runs import open_run, record_evaluation
from cnnlab.training.step import train_step
from conftest import Command, one_line_error

SOURCE = Path(package.__file__).parent
EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\r\nerror: all is well"
HARM = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


# No unpickling, no running of untrusted code


# Calls that can run code from a file, or unpack to wherever its member names lead.
FORBIDDEN = {
    "eval", "exec", "compile", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open",
    "dill.load", "joblib.load", "torch.load", "torch.hub.load", "torch.jit.load", "yaml.load", "os.system", "os.popen",
    "np.fromfile", "np.loadtxt", "np.genfromtxt", "tarfile.open", "shutil.unpack_archive", "importlib.import_module",
    "runpy.run_path", "subprocess.getoutput", "torch.package.PackageImporter",
}  # fmt: skip


def function_calls() -> list[tuple[Path, ast.Call, str]]:
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                found.append((path, node, ast.unparse(node.func)))
    return found


def test_no_code_unpickles_or_runs_the_contents_of_files() -> None:
    assert len(function_calls()) > 2000
    for path, call, name in function_calls():
        options = {k.arg: ast.unparse(k.value) for k in call.keywords}
        where = f"{path.name}:{call.lineno}: {ast.unparse(call)}"
        if path == SOURCE / "d2l" / "hub.py" and name in ("tarfile.open", "tar.extract", "packed.extract"):
            # download_extract, see tests/d2l/test_extract.py
            assert name != "tar.extract" or options.get("filter") == "'data'", where
            continue
        if path == SOURCE / "data" / "named.py" and name == "tarfile.open":
            continue  # an archive of known MD5; members are read, not unpacked
        if path == SOURCE / "data" / "webdataset.py" and name == "tarfile.open":
            continue  # members are read within bounds, not unpacked
        if path == SOURCE / "export" / "runtime_js.py" and name == "tarfile.open":
            continue  # members of known SHA-256 are read within bounds, not unpacked
        if path == SOURCE / "export" / "tensors.py" and name in ("exec", "compile"):
            continue  # to check the reader that it has just written
        if path == SOURCE / "models" / "published.py" and name == "torch.load":
            # a file of known SHA-256
            assert options.get("weights_only") == "True", where
            continue
        assert name not in FORBIDDEN, where
        assert name.rpartition(".")[2] not in ("extractall", "Unpickler", "load_state_dict_from_url"), where
        assert options.get("shell", "False") == "False", where
        if name == "np.load":
            assert options.get("allow_pickle") == "False", where
        if name.endswith(".extract"):
            raise AssertionError(where)
    imported = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                tar = ("d2l/hub.py", "data/named.py", "data/webdataset.py", "export/runtime_js.py")  # see above
                names = {alias.name for alias in node.names}
                imported |= names - {"tarfile"} if path.relative_to(SOURCE).as_posix() in tar else names
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module or "")
    assert not imported & {
        "pickle",
        "cPickle",
        "dill",
        "marshal",
        "shelve",
        "joblib",
        "cloudpickle",
        "tarfile",
        "xml",
        "yaml",
    }


def test_the_command_prints_through_echo() -> None:
    for path, call, name in function_calls():
        if path.name.startswith("cli"):
            assert name != "print", f"{path.name}:{call.lineno}: use text.echo"


def test_a_competitions_zip_with_an_empty_name_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        info = zipfile.ZipInfo("x")
        info.filename = "\0x"  # read back as an empty name
        zipped.writestr(info, "?")
        zipped.writestr("trainLabels.csv", "id,label\n1,cat\n")
    with Place(tmp_path / "a.zip", Layout()) as place:
        assert place.table("trainLabels.csv") == b"id,label\n1,cat\n"
    with pytest.raises(CnnlabError, match=r"a\.zip .*\btrain\b"):
        prepare_store(tmp_path / "a.zip", store=tmp_path / "store", workers=1)


# Text


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("plain.png", "plain.png"),
        ("猫 é.png", "猫 é.png"),
        ("a\u3000b", "a\u3000b"),
        ("a\nb", "a\\nb"),
        ("\x1b[2J", "\\u001b[2J"),
        ("\x9b2J", "\\u009b2J"),
        ("\u202egnp", "\\u202egnp"),
        ("\udce9", "\\udce9"),
        ("\U000e0041", "\\udb40\\udc41"),
    ],
)
def test_escape_makes_text_harmless(text: str, harmless: str) -> None:
    assert escape(text) == harmless
    assert escape_lines(f"{text}\nx") == f"{harmless if chr(10) not in text else text}\nx"
    if "\n" not in text:
        assert json.loads(escape_lines(json.dumps([text], ensure_ascii=False))) == [text]


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-2+3", "@SUM(A1)", " =1", "-cmd|' /C calc'!A0", "+-1"])
def test_formulas_are_quoted(text: str) -> None:
    assert cell(text) == f"'{text}"


@given(st.text())
@example(" \t=1")
@example("a;;-1")
def test_cell_adds_only_apostrophes(text: str) -> None:
    assert cell(text).replace("'", "") == escape(text).replace("'", "")
    assert re.fullmatch(r"[+-]?[0-9.e+-]+", text) or not cell(text).startswith(tuple("=+-@＝＋－＠"))
    assert ";=" not in cell(text)
    assert cell("a-b = c; d") == "a-b = c; d"


@given(st.text() | st.binary(max_size=20).map(os.fsdecode))
def test_any_name_can_be_escaped(name: str) -> None:
    text = escape(name)
    text.encode()
    assert all(c.isprintable() or unicodedata.category(c) == "Zs" for c in text)


@pytest.mark.parametrize("text", ["cat", "-1", "+0.5", "-1e-3", "1=1", "a@b", ""])
def test_other_cells_are_unchanged(text: str) -> None:
    assert cell(text) == text


def test_a_failed_row_cannot_write_markup() -> None:
    row = {"name": "lenet", "section": "1", "title": "LeNet", "failed": f"cannot read <img src=x onerror=alert(1)>|{EVIL}|[a](b)",
           "printed": {"loss": None, "train_acc": None, "test_acc": None, "examples_per_second": None}}  # fmt: skip
    line = markdown([row]).splitlines()[2]
    assert line.count("|") == 9
    assert not re.search(r"[<>\[\]]", line)
    assert not HARM.search(line)


def test_validation_errors_name_the_field() -> None:
    form = {"a": COUNT, "b": [NUMBER], "c": {"d": (None, str)}, "e?": bool, "f": ("x", "y"), "g": (1, 3)}
    good: dict[str, Any] = {"a": 1, "b": [1, 2.5], "c": {"d": None}, "f": "y", "g": 3, "more": []}
    assert validation_error(good, form) == ""
    for changes, expected in (
        ({"a": -1}, "its a "), ({"a": 1.0}, "its a .*whole number"), ({"a": True}, "its a "),
        ({"b": [1, "2"]}, r"its b\[1\] .*number"), ({"b": [float("nan")]}, r"its b\[0\]"), ({"b": {}}, "its b .*list"),
        ({"c": {}}, r"lacks d\b.*\bc\b"), ({"c": {"d": 3}}, r"its c\.d .*null or a string"), ({"e": 1}, "its e .*true"),
        ({"f": "z"}, "its f .*'x' or 'y'"), ({"g": 2}, "its g .*1 or 3"), ({"g": True}, "its g "),
        ({"a": 10**400}, "its a "), ({"b": [10**400]}, "its b"), ({"b": [5, 10**300]}, "its b"),
    ):  # fmt: skip
        assert re.search(expected, validation_error({**good, **changes}, form)), changes
    assert validation_error({}, form).endswith(" a, b, c, f, g")
    assert validation_error([], form).endswith(" object")
    assert validation_error(7, Number(1, 6, whole=True)) != ""


# Terminals: names of files, labels, settings


@pytest.fixture
def evil_folder(tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    for name in ("cats", EVIL.replace("/", "")):
        (root / name).mkdir(parents=True)
        for i in range(6):
            Image.new("L", (16, 16), 40 * i).save(root / name / f"{i}{EVIL}.png")
    return root


@pytest.mark.usefixtures("drawn_curves")
def test_hostile_names_do_not_reach_the_terminal(evil_folder: Path, cnnlab: Command, tmp_path: Path) -> None:
    recipe = Recipe(
        data=f"folder:{evil_folder}", epochs=1, batch_size=4, val_fraction=0.3, model="lenet", image_size=28
    )
    run = train(recipe.changed(name=f"my{EVIL}"), name="run", progress="none").run.path
    pictures = evil_folder / "cats"
    bad = tmp_path / f"bad{EVIL}.png"
    bad.write_bytes(b"no image")
    for arguments in (
        ["runs"], ["runs", run], ["runs", run, run], ["eval", run, "--split", "validation"], ["predict", run, pictures],
        ["predict", run, pictures, bad, "--skip-bad"], ["predict", run, bad], ["predict", run, pictures, "--format", "csv"],
        ["data", "verify", recipe.data], ["data", "duplicates", recipe.data, "--most", 9], ["doctor"],
        ["train", "--data", f"folder:{tmp_path / EVIL.replace('/', '')}"], ["show", EVIL], ["eval", EVIL],
        ["train", "--set", f"epochs={EVIL}"], ["train", "--name", EVIL], ["data", "labels", bad, pictures],
    ):  # fmt: skip
        answer = cnnlab(*arguments)
        assert not HARM.search(answer.stdout + answer.stderr), arguments
        assert "\nerror: all is well" not in answer.stdout, arguments
        if answer.returncode == 2:
            one_line_error(answer)
    found = json.loads(cnnlab("predict", run, pictures, "--format", "json").stdout)
    assert {top["label"] for row in found for top in row["top"]} == {"cats", EVIL.replace("/", "")}
    assert {row["image"] for row in found} == {str(p) for p in pictures.iterdir()}
    assert (run / "curves.png").stat().st_size > 1000


def test_predictions_for_a_spreadsheet_hold_no_formulas(cnnlab: Command, tmp_path: Path) -> None:
    for name in ("=cmd()", "-1"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("L", (28, 28), 40 * i).save(tmp_path / "mine" / name / f"{i}.png")
    recipe = Recipe(data=f"folder:{tmp_path / 'mine'}", epochs=1, batch_size=4, val_fraction=0.3, model="lenet")
    train(recipe, name="run", progress="none")
    Image.new("L", (28, 28)).save("=1.png")
    text = cnnlab("predict", "run", "=1.png", "--format", "csv").stdout
    assert text.splitlines()[1].startswith("'=1.png,")
    assert "'=cmd()" in text
    assert re.search(r",-1,", text)
    assert '"=cmd()"' in cnnlab("predict", "run", "=1.png", "--format", "json").stdout


# Images


def image(kind: str, mode: str = "RGB", size: tuple[int, int] = (8, 6), **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 1 if mode in ("1", "L", "P", "I;16", "F", "I") else None).save(out, kind, **options)
    return out.getvalue()


def test_no_image_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would pass PostScript in a file called 1.png to Ghostscript."""
    (tmp_path / "bin").mkdir()
    gs = tmp_path / "bin" / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (tmp_path / "1.png").write_bytes(eps)
    with Image.open(tmp_path / "1.png") as opened:  # Pillow alone would run it
        assert opened.format == "EPS"
        with pytest.raises(OSError, match="."):
            opened.load()
    assert (tmp_path / "was-run").exists()
    (tmp_path / "was-run").unlink()
    for content in (None, eps):
        with pytest.raises(BadImage, match=r"1\.png.*format"):
            decode(tmp_path / "1.png", Decoding(3, 8, "pad"), content)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("kind", ["PDF", "EPS", "ICNS", "MSP", "SPIDER", "XBM", "DDS", "PALM"])
def test_other_formats_are_refused(kind: str) -> None:
    content = image(kind, {"PALM": "P", "SPIDER": "F", "MSP": "1", "XBM": "1"}.get(kind, "RGB"), (32, 32))
    with pytest.raises(BadImage, match=r"a\.png.*image"):
        decode("a.png", Decoding(3, 8, "pad"), content)
    assert f".{kind.lower()}" not in ENDINGS


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGB"), ("PNG", "I;16"), ("JPEG", "CMYK"), ("GIF", "P"), ("WEBP", "RGBA"), ("BMP", "RGB"), ("TIFF", "CMYK"),
     ("TIFF", "F"), ("PPM", "L"), ("ICO", "RGBA"), ("PCX", "L"), ("SGI", "RGB"), ("TGA", "RGBA"), ("MPO", "RGB")],
)  # fmt: skip
def test_common_formats_are_decoded(kind: str, mode: str) -> None:
    options = {"sizes": [(8, 6)]} if kind == "ICO" else {}
    assert decode("a", Decoding(3, 8, "pad"), image(kind, mode, **options)).shape == (3, 8, 8)


def test_the_first_frame_of_an_animation_is_decoded() -> None:
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        out = io.BytesIO()
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(out, kind, save_all=True, append_images=frames[1:], **options)
        assert (decode("a", Decoding(3, 8, "pad"), out.getvalue())[:, 4, 4] == [255, 0, 0]).all(), kind


def test_huge_dimensions_are_refused_from_the_header() -> None:
    huge = bytearray(image("PNG", "1"))
    huge[16:24] = struct.pack(">II", 200_000, 200_000)
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    ppm = b"P6 100000 100000 255\n"
    gif = bytearray(image("GIF", "P"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    for content in (bytes(huge), ppm, bytes(gif)):
        with bombs_refused(), pytest.raises(TooLarge, match=r"a\.png"):
            decode("a.png", Decoding(3, 8, "pad"), content)


CHILD = """
import re, resource, sys
from pathlib import Path
from cnnlab.io.errors import CnnlabError
{imports}
def peak(): return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
before = peak()
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
try:
    {body}
    print("accepted")
except CnnlabError as error:
    print("refused", error)
print(peak() - before)
"""


def in_a_process(tmp_path: Path, imports: str, body: str) -> tuple[str, int]:
    """Run `body` in a new process. Return its last line of output and the MiB that it took."""
    code = CHILD.format(imports=imports, body=body)
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert said.returncode == 0, said.stderr
    *lines, mib = said.stdout.splitlines()
    return lines[-1], int(mib)


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")


@linux
@pytest.mark.slow
def test_the_largest_image_that_is_decoded_takes_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image("PNG", "P", (9400, 9400)))
    assert (tmp_path / "a.png").stat().st_size < 100_000
    outcome, mib = in_a_process(
        tmp_path, "from cnnlab.io.decode import Decoding, bombs_refused, decode",
        "with bombs_refused(): decode('a.png', Decoding(3, 64, 'pad'))",
    )  # fmt: skip
    assert outcome == "accepted"
    assert mib < 800
    (tmp_path / "a.png").write_bytes(image("PNG", "1", (9500, 9500)))
    with bombs_refused(), pytest.raises(BadImage, match="90,250,000 pixels"):
        decode(tmp_path / "a.png", Decoding(3, 64, "pad"))


def test_a_file_that_is_too_large_for_an_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.write(image("PNG"))
        file.truncate((1 << 29) + 1)
    with pytest.raises(BadImage, match="536,870,913 bytes"):
        decode(tmp_path / "a.png", Decoding(3, 8, "pad"))


def test_enormous_images_of_a_folder_need_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnlab.data.files.LARGEST_SIDE", 20)
    for name in "ab":
        (tmp_path / "mine" / name).mkdir(parents=True)
        Image.new("L", (21, 21)).save(tmp_path / "mine" / name / "1.png")
    with pytest.raises(CnnlabError, match=r"\b21 pixels.*image_size"):
        load_images(f"folder:{tmp_path / 'mine'}", "train", SourceOptions(data_dir=tmp_path))


# Archives: cases that tests/data/test_archives.py does not have


@pytest.mark.parametrize("kind", [".zip", ".7z"])
def test_archives_of_too_many_files_are_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    py7zr = pytest.importorskip("py7zr")
    path = tmp_path / f"a{kind}"
    if kind == ".zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for i in range(60):
                zipped.writestr(f"{i}.txt", b"")
    else:
        monkeypatch.setattr("cnnlab.data.archives.sevenzip.FILE_COUNT_LIMIT", 50)
        with py7zr.SevenZipFile(path, "w") as seven:
            for i in range(60):
                seven.writestr(b"x", f"{i}.txt")
    monkeypatch.setattr("cnnlab.data.archives.base.FILE_COUNT_LIMIT", 50)
    with pytest.raises(CnnlabError, match=r"\b50 files|damaged"):
        open_archive(path)
    if kind == ".zip":
        monkeypatch.setattr("cnnlab.data.archives.zip._LIST_LIMIT", 1000)
        monkeypatch.setattr(zipfile, "ZipFile", lambda _: pytest.fail("its list was read"))
        with pytest.raises(CnnlabError, match="members.* [0-9,]+ bytes"):
            open_archive(path)


# Tables


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,label\n" + b",".join([b"x"] * 1_000_000) + b"\n", "line 2.*1,048,576 characters"),
        (b"id,label\n1," + b"a" * 200_000 + b"\n", "field larger than field limit"),
        (b'id,label\n' + b'"a\n",' * 900_000, "4,194,304 characters"),
        (b"id,label\n" + b"".join(b"%d,cat\n" % i for i in range(400_000)), "3,000,000"),
    ],
)  # fmt: skip
def test_tables_that_would_fill_the_memory_are_refused(
    content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnnlab.io.csv._LARGEST", 3_000_000 if content.count(b"cat") else 1 << 28)
    with pytest.raises(CnnlabError, match=message):
        read_table(io.BytesIO(content), "labels.csv")


def test_a_quoting_error_in_a_header_names_its_line() -> None:
    with pytest.raises(CnnlabError, match=r"a\.csv, line 3:"):
        read_header(io.BytesIO(b'\n\n"id"s,label\n1,cat\n'), "a.csv")


# Recipes and other JSON


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"learning_rate": 10**400}, "100 digits"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"learning_rate": float("inf")}, "finite"),
        ({"epochs": 10**400}, "100000"),
        ({"epochs": float("nan")}, "whole number"),
        ({"model": ["x"] * 100_000}, "string"),
        ({"model": "x" * 100_000}, "8,192 characters"),
        ({"\x1b[2J" * 50_000: 1}, r"'\x1b[2J"),
        ({"optimizer": "x" * 100_000}, "sgd"),
    ],
)
def test_hostile_recipe_values_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(CnnlabError, match=re.escape(expected)) as caught:
        Recipe.from_dict({**Recipe().to_dict(), **changes})
    assert len(str(caught.value)) < 2000
    assert str(caught.value).isprintable()


def test_deep_and_large_json_gives_at_most_a_cnnlab_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for depth in (10, 300, 400, 470, 490, 500, 600, 900, 960, 990, 1000, 1010, 5000, 100_000):
        for around in ('{"a": %s}', '{"a": %s, "blake2b": "x"}'):
            path.write_text(around % ("[" * depth + "]" * depth))
            try:
                read_checked(path)
            except CnnlabError as error:
                assert re.search(r"a\.json.*damaged", str(error))
    path.write_text('{"a": [' + "[]," * 1_000_001 + "[]]}")
    with pytest.raises(CnnlabError, match="1,000,000 lists"):
        read_json(path)
    path.write_bytes(b" " * ((1 << 24) + 1))
    with pytest.raises(CnnlabError, match="16,777,216 bytes"):
        read_json(path)
    path.write_text('{"a": ' + "9" * 10_000 + "}")
    with pytest.raises(CnnlabError, match=r"a\.json.*damaged"):
        read_json(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, finished: Path) -> None:
    for name in ("summary.json", "metrics.jsonl", "environment.json", "best.safetensors"):
        (finished / name).unlink()
        os.mkfifo(finished / name)
    run = open_run(finished)
    for read in (run.summary, run.metrics):
        with pytest.raises(CnnlabError, match="regular file"):
            read()
    with pytest.raises(CnnlabError, match=r"best\.safetensors.*regular file"):
        load_weights(finished / "best.safetensors", build_model("lenet"))


def test_names_that_are_not_utf8_can_be_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": "x\udce9"})
    assert read_json(tmp_path / "a.json") == {"a": "x\udce9"}


@pytest.mark.parametrize(
    "name", ["con", "NUL", "Aux.txt", "com1", "LPT9.run", "a.", "x..", "../a", "a/b", "a\\b", "\x1b", "a\n", ""]
)
def test_invalid_names_of_runs_are_refused(name: str) -> None:
    with pytest.raises(CnnlabError, match="run name"):
        check_name(name)


def test_valid_names_of_runs_are_accepted() -> None:
    for name in ("a", "a.b", "0-_", "console", "nullable", "com10", "aux-1", "x" * 100):
        check_name(name)


# Runs from strangers


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    recipe = Recipe(epochs=1, limit=60, batch_size=20, image_size=16, model="nin-small")
    return train(recipe.changed(model="lenet-bn"), name="run", progress="none").run.path


def changed_info(run: Path, **changes: Any) -> None:
    info = json.loads((run / "run.json").read_text())
    info.pop("blake2b")
    for place, value in changes.items():
        part, key = place.split("__")
        info[part][key] = value
    write_checked(run / "run.json", info)


def test_a_run_that_declares_an_enormous_network_is_refused(finished: Path, cnnlab: Command) -> None:
    """The checksums are right, as an attacker would make them. Ten million classes are a network of 13 GB."""
    before = (finished / "run.json").read_bytes()
    for changes in (
        {"model__num_classes": 10_000_000}, {"model__in_channels": 10**9}, {"model__image_size": 10**9},
        {"model__image_size": 8192, "preprocessing__image_size": 8192}, {"model__name": "vgg19"}, {"model__name": ["vgg19"]},
        {"preprocessing__mean": [1e300]}, {"preprocessing__std": [0.0]}, {"preprocessing__fit": EVIL},
        {"preprocessing__channels": 3}, {"data__classes": [1] * 10}, {"model__name": "timm:" + EVIL},
    ):  # fmt: skip
        changed_info(finished, **changes)
        line = one_line_error(cnnlab("eval", finished, "--split", "validation"))
        assert not HARM.search(line)
        (finished / "run.json").write_bytes(before)
    assert cnnlab("eval", finished, "--split", "validation").returncode == 0


@pytest.mark.parametrize("index", [0, 3])
def test_a_checkpoint_without_one_momentum_continues_with_zero(tmp_path: Path, index: int) -> None:
    from cnnlab.training.checkpoint import _read, _write

    def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = build_model("lenet")
        return model, make_optimizer(model, Recipe(momentum=0.9))

    device, path = pick_device("cpu"), tmp_path / "checkpoint.safetensors"
    x, y = torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 2, 0])
    model, optimizer = fresh()
    train_step(model, optimizer, x, y)
    save_checkpoint(path, model, optimizer, device, {}, None)
    tensors, values = _read(path)
    before = tensors.pop(f"optimizer.{index}.momentum_buffer")
    _write(path, tensors, values)
    other, its = fresh()
    load_checkpoint(path, other, its, device, None)
    for network, updater in ((model, optimizer), (other, its)):
        train_step(network, updater, x, y)
    in_order = ([p for group in o.param_groups for p in group["params"]] for o in (optimizer, its))
    for i, (ours, lacking) in enumerate(zip(*in_order, strict=True)):
        expected = ours + 0.9 * optimizer.param_groups[0]["lr"] * before if i == index else ours
        torch.testing.assert_close(lacking, expected, rtol=1e-5, atol=1e-6)


def test_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "w.safetensors", build_model("lenet")
    for kind in (torch.float16, torch.float64, torch.int8, torch.bool):
        tensors = {k: v.to(kind) for k, v in model.state_dict().items()}
        save_weights(path, _Holder(tensors))  # type: ignore[arg-type]
        with pytest.raises(CnnlabError, match=r"w\.safetensors.*torch\.\w+.*torch\.float32"):
            load_weights(path, model)


class _Holder:
    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.state_dict = lambda: tensors


@pytest.mark.parametrize("position", [-1, 625, 10**6, 2**31 - 1, 1.0, None])
def test_an_invalid_random_state_cannot_make_numpy_read_out_of_bounds(position: Any) -> None:
    """With a position of a million, NumPy would read its next number far outside the state, or crash."""
    device = pick_device("cpu")
    tensors, values = random_state(device)
    values["numpy"][1] = position
    with pytest.raises(ValueError, match="NumPy"):
        set_random_state(device, tensors, values)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "muon"])
def test_an_optimisers_settings_come_from_the_recipe(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, device = Recipe(optimizer=kind), pick_device("cpu")
    model = build_model("lenet")
    optimizer = make_optimizer(model, recipe)
    own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group.update(lr=1e9, weight_decay="x", maximize=True, evil=1)
    save_checkpoint(tmp_path / "c.safetensors", model, optimizer, device, {})
    optimizer = make_optimizer(model, recipe)
    load_checkpoint(tmp_path / "c.safetensors", model, optimizer, device)
    assert [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups] == own


def test_nothing_is_written_through_a_link_in_a_runs_folder(finished: Path, tmp_path: Path, cnnlab: Command) -> None:
    for name in (".lock", "evaluations.jsonl"):
        (tmp_path / f"mine{name}").write_text("precious\n")
        (finished / name).unlink(missing_ok=True)
        (finished / name).symlink_to(tmp_path / f"mine{name}")
    (finished / "summary.json").unlink()
    line = one_line_error(cnnlab("train", "--resume", finished))
    assert "symlink" in line
    with pytest.raises(CnnlabError, match="symlink"), locked(finished):
        pass
    assert not record_evaluation(open_run(finished), {"split": "test"})
    assert (tmp_path / "mine.lock").read_text() == (tmp_path / "mineevaluations.jsonl").read_text() == "precious\n"


def test_a_hostile_recipe_is_refused(finished: Path, cnnlab: Command) -> None:
    values = json.loads((finished / "recipe.json").read_text())
    info = json.loads((finished / "run.json").read_text())
    info.pop("blake2b")
    for changes in (
        {"limit": -1},
        {"data": "folder:\0"},
        {"data": "store:/dev/null"},
        {"eval_split": "x"},
        {"evil": 1},
    ):
        (finished / "recipe.json").write_text(json.dumps({**values, **changes}))
        write_checked(finished / "run.json", {**info, "recipes": [digest({**values, **changes})]})
        one_line_error(cnnlab("eval", finished, "--split", "validation"))


@pytest.mark.parametrize("source", ["", "a\0b", "folder:a\0b", "csv:a\0b", "wds:a\0b", "pack:a\0b", "store:a\0b"])
def test_names_that_no_file_can_have_are_refused(source: str) -> None:
    with pytest.raises(CnnlabError) as caught:
        load_images(source, "train")
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize("address", ["https://example.org/cats.zip", "s3://bucket/cats"])
def test_an_address_in_place_of_a_file_is_named(address: str, cnnlab: Command) -> None:
    for words in (
        ["train", "--data", f"folder:{address}"],
        ["data", "verify", f"store:{address}"],
        ["kaggle", "score", address, "--labels", "x.csv"],
        ["kaggle", "prepare", address],
        ["figures", "--out", address],
    ):
        answer = cnnlab(*words)
        assert answer.returncode in (1, 2), words  # 1: a report with failed checks
        assert address in answer.stdout + answer.stderr, words
    assert not Path("https:").exists()
