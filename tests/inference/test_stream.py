"""Streamed predictions: the same as for a list, in bounded memory, into files that can be continued after a kill."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnnlab import CnnlabError, Run, load_model, predict
from cnnlab.inference import output, predict_stream, stream
from cnnlab.io import decode_process
from cnnlab.io.decode_process import DecodeProcess
from conftest import Command, one_line_error

COUNT = 23
STEP = 4


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images of different sizes, ordered by name."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (8 + i % 3, 9), np.uint8)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "batch_size_of", lambda _: STEP)


def copy_with_damage(photos: Path, to: Path) -> Path:
    """Copy the photos, with 05 and 17 truncated. Return the folder."""
    to.mkdir()
    for file in photos.iterdir():
        content = file.read_bytes()
        (to / file.name).write_bytes(content[:20] if file.stem in ("05", "17") else content)
    return to


@pytest.mark.usefixtures("small_batches")
def test_a_stream_matches_the_list_and_the_classifier(digits_run: Run, photos: Path) -> None:
    for threads in (1, None):
        streamed = list(predict_stream(digits_run, photos, top=10, threads=threads))
        listed, others = predict(digits_run, [photos], top=10)
        assert streamed == listed
        assert not others
        assert [p.path.name for p in streamed] == [f"{i:02d}.png" for i in range(COUNT)]
        model = load_model(digits_run)
        batches = [model.predict(sorted(photos.iterdir())[at : at + STEP]) for at in range(0, COUNT, STEP)]
        assert [p.top for p in streamed] == [top for found in batches for top in found.top(10)]


@pytest.mark.usefixtures("small_batches")
def test_a_stream_from_the_middle_gives_the_same_answers(digits_run: Run, photos: Path) -> None:
    opened = predict_stream(digits_run, photos)
    whole = list(opened)
    for start in (0, 1, STEP, STEP + 3, COUNT - 1, COUNT):
        assert [p for batch in opened.batches(start) for p in batch] == whole[start:]


@pytest.mark.usefixtures("small_batches")
def test_reading_runs_ahead_a_bounded_number_of_images(
    digits_run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    real = decode_process.decode_all
    monkeypatch.setattr(decode_process, "decode_all", lambda files, *how: (read.extend(files), real(files, *how))[1])
    opened = predict_stream(digits_run, [photos] * 40, threads=1)
    answers = iter(opened)
    for taken in range(1, 200):
        next(answers)
        batches_done = -(-taken // STEP)
        assert len(read) <= STEP * batches_done + STEP + 2
    answers.close()  # type: ignore[attr-defined]
    assert len(read) < 220 < len(opened)


@pytest.mark.usefixtures("small_batches")
def test_processes_decode_like_threads(
    digits_run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = copy_with_damage(photos, tmp_path / "some")
    (some / os.fsdecode(b"\xff.png")).write_bytes((photos / "00.png").read_bytes())
    monkeypatch.setattr(stream, "available_cores", lambda: 2)
    in_threads = list(predict_stream(digits_run, some, skip_bad=True, invert=True))
    started: list[DecodeProcess] = []
    real = DecodeProcess
    monkeypatch.setattr(stream, "_MANY", 1)
    monkeypatch.setattr(decode_process, "DecodeProcess", lambda: (started.append(real()), started[-1])[1])
    assert list(predict_stream(digits_run, some, skip_bad=True, invert=True)) == in_threads
    assert len(started) in (1, 2)  # the first process may have been quick enough to decode everything
    assert all(one.process.returncode == 0 for one in started)


@pytest.mark.usefixtures("small_batches")
def test_a_dead_decoding_process_is_an_error(digits_run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = DecodeProcess

    def dead_process() -> DecodeProcess:
        one = real()
        one.process.kill()
        return one

    monkeypatch.setattr(stream, "available_cores", lambda: 2)
    monkeypatch.setattr(stream, "_MANY", 1)
    monkeypatch.setattr(decode_process, "DecodeProcess", dead_process)
    with pytest.raises(CnnlabError):
        list(predict_stream(digits_run, photos))


def test_errors_are_raised_at_once_except_those_in_images(digits_run: Run, photos: Path, tmp_path: Path) -> None:
    for wrong in ({"top": 0}, {"views": "flp"}, {"threads": 0}, {"device": "gpu"}):
        with pytest.raises(CnnlabError):
            predict_stream(digits_run, photos, **wrong)  # type: ignore[arg-type]
    with pytest.raises(CnnlabError, match="missing"):
        predict_stream(digits_run, tmp_path / "missing")
    bad = copy_with_damage(photos, tmp_path / "bad")
    answers = predict_stream(digits_run, bad)
    with pytest.raises(CnnlabError, match=r"05\.png"):
        list(answers)
    found = list(predict_stream(digits_run, bad, skip_bad=True))
    assert [p.path.name for p in found if p.error] == ["05.png", "17.png"]
    assert all(p.top for p in found if not p.error)


@pytest.mark.usefixtures("small_batches")
def test_every_format_holds_the_same_values(digits_run: Run, photos: Path, tmp_path: Path, cnnlab: Command) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    bad = copy_with_damage(photos, tmp_path / "bad")
    command = ("predict", digits_run.path, bad, "--top", 2, "--skip-bad")
    for ending in ("csv", "jsonl", "parquet"):
        answer = cnnlab(*command, "--out", f"x.{ending}")
        assert answer.returncode == 0, answer.stderr
        assert re.search(rf"\b{COUNT - 2} images\b.*\b2 damaged", answer.stdout)
    for ending in ("csv", "jsonl"):
        printed = cnnlab(*command, "--format", ending)
        assert printed.stdout == Path(f"x.{ending}").read_text()
        assert re.search(rf"\b{COUNT - 2} images\b.*\b2 damaged", printed.stderr)
    table = pq.read_table("x.parquet").to_pylist()
    lines = [json.loads(line) for line in Path("x.jsonl").read_text().splitlines()]
    rows = list(csv.DictReader(io.StringIO(Path("x.csv").read_text())))
    answers = list(predict_stream(digits_run, bad, top=2, skip_bad=True))
    for p, row, line, cells in zip(answers, table, lines, rows, strict=True):
        assert str(p.path) == row["image"] == line["image"] == cells["image"]
        assert (p.error or None) == row["error"] == line["error"] == (cells["error"] or None)
        places = [(row[f"label_{i}"], row[f"probability_{i}"]) for i in (1, 2) if row[f"label_{i}"] is not None]
        assert places == p.top == [(place["label"], place["probability"]) for place in line["top"]]
        texts = [(cells[f"label_{i}"], cells[f"probability_{i}"]) for i in (1, 2) if cells[f"label_{i}"]]
        assert texts == [(label, f"{probability:.6f}") for label, probability in p.top]
        none = None if p.error else p.none_of_these
        assert none is row["none_of_these"] is line["none_of_these"]
        assert cells["none_of_these"] == ("" if none is None else str(none).lower())
    assert sorted(p.name for p in Path().iterdir()) == ["bad", "x.csv", "x.jsonl", "x.parquet"]


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_file_cut_off_anywhere_is_continued_to_the_same_bytes(
    digits_run: Run, photos: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = predict_stream(digits_run, photos, top=1)
    output.save(opened, Path(f"whole.{ending}"))
    whole = Path(f"whole.{ending}").read_bytes()
    file = Path(f"x.{ending}")
    parts: dict[str, bytes] = {}

    def killed(self: Any, convert: Any = None) -> None:
        parts.update({p.name: p.read_bytes() for p in Path().glob("x.*")})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(output.PartFile, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            output.save(opened, file)
    lines = parts[f"{file.name}.part"]
    read: list[Path] = []
    real = decode_process.decode_all
    monkeypatch.setattr(decode_process, "decode_all", lambda files, *how: (read.extend(files), real(files, *how))[1])
    for cut in (0, 1, len(lines) // 2, len(lines) - 1, len(lines)):
        for name, content in parts.items():
            Path(name).write_bytes(content)
        Path(f"{file.name}.part").write_bytes(lines[:cut])
        read.clear()
        told: list[str] = []
        assert output.save(opened, file, log=told.append).images == COUNT
        assert file.read_bytes() == whole
        assert bool(told) == (cut > len(lines) // 3)
        assert len(read) < COUNT or cut < 2  # finished images are not decoded again
        assert [p.name for p in Path().glob("x.*")] == [file.name]
        file.unlink()


# Writes nine lines, then part of the next batch, which ends inside a line, and is killed.
KILLED = """
import os, signal, sys
from pathlib import Path
from cnnlab.inference import output, stream

stream.batch_size_of = lambda _: 4
real, written = output.PartFile.write, 0

def write(self, lines):
    global written
    written += lines.count(b"\\n")
    if written > 9:
        real(self, lines[: len(lines) // 2 + 3])
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, lines)

output.PartFile.write = write
output.save(stream.predict_stream(sys.argv[1], sys.argv[2]), Path("x.csv"))
"""


@pytest.mark.usefixtures("small_batches")
def test_a_killed_process_is_continued_to_the_same_bytes(digits_run: Run, photos: Path, cnnlab: Command) -> None:
    command = ("predict", digits_run.path, photos)
    assert cnnlab(*command, "--out", "whole.csv").returncode == 0
    process = subprocess.run([sys.executable, "-c", KILLED, str(digits_run.path), str(photos)])
    assert process.returncode == -signal.SIGKILL
    assert not Path("x.csv").exists()
    left = Path("x.csv.part").read_bytes()
    assert not left.endswith(b"\n")
    for other in (["--top", 2], ["--tta", "flip"], ["--invert"], ["--weights", "last"]):
        changed = one_line_error(cnnlab(*command, *other, "--out", "x.csv"))
        assert "x.csv.part" in changed
    assert one_line_error(cnnlab("predict", digits_run.path, photos, photos, "--out", "x.csv"))
    assert Path("x.csv.part").read_bytes() == left
    answer = cnnlab(*command, "--out", "x.csv")
    assert answer.returncode == 0, answer.stderr
    assert re.search(rf"x\.csv .*\b{COUNT} images", answer.stderr)
    assert Path("x.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert not list(Path().glob("x.csv.*"))
    assert "exists" in one_line_error(cnnlab(*command, "--out", "x.csv"))


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("step", ["link", "unlink", "replace"])
def test_a_process_killed_while_finishing_is_continued(
    digits_run: Run, photos: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = predict_stream(digits_run, photos)
    output.save(opened, Path("whole.csv"))

    def stop(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "unlink":
            patch.setattr(Path, "unlink", stop)
        else:
            patch.setattr(os, step, stop)
        with pytest.raises(KeyboardInterrupt):
            output.save(opened, Path("x.csv"))
    assert output.save(opened, Path("x.csv")).images == COUNT
    assert Path("x.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert [p.name for p in Path().glob("x.*")] == ["x.csv"]


@pytest.mark.usefixtures("small_batches")
def test_rows_that_were_moved_away_are_not_a_finished_file(
    digits_run: Run, photos: Path, tmp_path: Path, cnnlab: Command
) -> None:
    bad = copy_with_damage(photos, tmp_path / "bad")
    command = ("predict", digits_run.path, bad, "--out", "x.csv")
    one_line_error(cnnlab(*command))
    rows = Path("x.csv.part").read_bytes()
    Path("x.csv.part").rename("x.csv")
    assert "exists" in one_line_error(cnnlab(*command))
    assert Path("x.csv").read_bytes() == rows


@pytest.mark.usefixtures("small_batches")
def test_a_damaged_image_stops_and_the_same_command_continues(
    digits_run: Run, photos: Path, tmp_path: Path, cnnlab: Command
) -> None:
    bad = copy_with_damage(photos, tmp_path / "bad")
    command = ("predict", digits_run.path, bad, "--out", "x.csv")
    assert "05.png" in one_line_error(cnnlab(*command))
    assert Path("x.csv.part").read_bytes().count(b"\n") == 1 + STEP
    (bad / "05.png").write_bytes((photos / "05.png").read_bytes())
    assert "17.png" in one_line_error(cnnlab(*command))
    answer = cnnlab(*command, "--skip-bad")  # the option may be added later: the rows are the same
    assert answer.returncode == 0
    rows = list(csv.DictReader(Path("x.csv").read_text().splitlines()))
    assert [row["image"] for row in rows if row["error"]] == [str(bad / "17.png")]
    for name in ("05.png", "17.png"):
        (bad / name).write_bytes(b"")
    only = cnnlab("predict", digits_run.path, bad / "05.png", bad / "17.png", "--skip-bad", "--out", "y.csv")
    assert "2 images" in one_line_error(only)


def test_unrelated_partial_files_are_not_continued(digits_run: Run, photos: Path, cnnlab: Command) -> None:
    command = ("predict", digits_run.path, photos)
    for out in ("x.txt", "x", "nowhere"):
        assert out in one_line_error(cnnlab(*command, "--out", f"{out}/x.csv" if out == "nowhere" else out))
    Path("x.csv.part").write_text("mine")
    assert "x.csv.part" in one_line_error(cnnlab(*command, "--out", "x.csv"))
    assert Path("x.csv.part").read_text() == "mine"
    assert "--format json" in one_line_error(cnnlab(*command, "--out", "y.csv", "--format", "json"))
    opened = predict_stream(digits_run, photos)
    with output.PartFile(Path("z.csv"), opened.key()):
        assert "process" in one_line_error(cnnlab(*command, "--out", "z.csv"))
    Path("z.csv.part").write_text("image,label_1\n")
    assert re.search(r"z\.csv\.part.*line 1\b", one_line_error(cnnlab(*command, "--out", "z.csv")))
    Path("z.csv.part").unlink()  # one of the two files named in this message
    assert cnnlab(*command, "--out", "z.csv").returncode == 0
    assert len(Path("z.csv").read_text().splitlines()) == COUNT + 1


@pytest.mark.skipif(os.name != "posix", reason="names that are not UTF-8")
def test_odd_file_names_are_written_in_every_format(
    digits_run: Run, photos: Path, tmp_path: Path, cnnlab: Command
) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    names = ["=1+1.png", "a,b.png", 'c"d.png', "e\nf.png", "g.png", os.fsdecode(b"h\xe9.png"), "猫.png"]
    (tmp_path / "odd").mkdir()
    for name in names:
        (tmp_path / "odd" / name).write_bytes((photos / "00.png").read_bytes())
    for ending in ("csv", "jsonl", "parquet"):
        assert (
            cnnlab("predict", digits_run.path, *names, "--out", f"../x.{ending}", cwd=tmp_path / "odd").returncode == 0
        )
    with Path("x.csv").open(encoding="utf-8", newline="") as file:
        cells = [row["image"] for row in csv.DictReader(file)]
    assert cells == ["'=1+1.png", "a,b.png", 'c"d.png', "e\\nf.png", "g.png", "h\\udce9.png", "猫.png"]
    assert [json.loads(line)["image"] for line in Path("x.jsonl").read_text().splitlines()] == names
    images = pq.read_table("x.parquet").column("image").to_pylist()
    assert images == [*names[:5], "h\\udce9.png", "猫.png"]


def test_a_closed_pipe_ends_the_command_without_an_error(digits_run: Run, photos: Path) -> None:
    command = [str(Path(sys.executable).parent / "cnnlab"), "predict", str(digits_run.path), *[str(photos)] * 60]
    text = f"{shlex.join(command)} --format csv | head -n 2"
    answer = subprocess.run(["bash", "-o", "pipefail", "-c", text], capture_output=True, text=True)
    assert answer.stderr == ""
    assert answer.returncode == 0
    assert answer.stdout.count("\n") == 2


def test_overlapping_reads_refuse_bombs_until_the_last_ends(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cnnlab.io.decode import BadImage, Decoding, bombs_refused, decode

    first, second = bombs_refused(), bombs_refused()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(BadImage):
        decode(photos / "00.png", Decoding(1, 8))
    second.__exit__(None, None, None)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(photos / "00.png").close()
