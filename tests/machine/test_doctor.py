"""`cnnlab doctor` and `cnnlab data verify` report what works and what does not."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from cnnlab import Recipe, train
from cnnlab.competition.layout import Layout
from cnnlab.competition.prepare_store import prepare_store
from cnnlab.machine import doctor
from conftest import Command, one_line_error


def unwrapped(text: str) -> str:
    """Return the report without the line breaks that fit it to the terminal's width."""
    return text.replace("\n        ", " ")


def test_a_working_installation_has_no_failed_check(quick: Recipe, cnnlab: Command, tmp_path: Path) -> None:
    train(quick.changed(epochs=1), name="mine")
    answer = cnnlab("doctor", "--data-dir", tmp_path / "none")
    assert answer.returncode == 0, answer.stdout
    assert not [line for line in answer.stdout.splitlines() if line.startswith("failed")]
    printed = unwrapped(answer.stdout)
    for text in ("ok      system: ", "ok      device: cpu", "arithmetic, float32: ",
                 "training step: ", "disk, runs: ", "ok      runs: 1 finished",
                 "note    fashion-mnist: ", "digits: train: 1,438 images, 1 x 8 x 8, 10 classes"):  # fmt: skip
        assert text in printed
    found = json.loads(cnnlab("doctor", "--data-dir", tmp_path / "none", "--json").stdout)
    assert {check["state"] for check in found} <= {"ok", "note"}
    assert not list(tmp_path.glob(".cnnlab-*"))
    assert "'gpu'" in one_line_error(cnnlab("doctor", "--device", "gpu"))


def test_damaged_and_unfinished_runs_are_named(quick: Recipe, cnnlab: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_arithmetic", lambda device: iter(()))
    path = train(quick.changed(epochs=1), name="open").run.path
    shutil.copytree(path, "runs/bad")
    (path / "summary.json").unlink()
    Path("runs/bad/run.json").write_text("{")
    answer = cnnlab("doctor", "--data-dir", "none")
    assert answer.returncode == 1
    assert re.search("note    runs: runs/open .*cnnlab train --resume runs/open", unwrapped(answer.stdout))
    assert "failed  runs: runs/bad/run.json " in unwrapped(answer.stdout)


def test_a_disk_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor, "write_atomic", full)
    monkeypatch.setattr(doctor, "_arithmetic", lambda device: iter(()))
    checks = doctor.examine(runs_dir="a/b/c", data_dir="none")
    found = [check for check in checks if check.what.startswith("disk")]
    assert [(check.what, check.state) for check in found] == [
        ("disk, runs", "failed"),
        ("disk, data", "note"),  # the data folder may be shared and read-only
        ("disk, cache", "note"),
    ]
    assert re.search(f"{Path.cwd()}.*No space left on device", found[0].text)


def test_a_drive_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "isdir", lambda _: False)  # as on Windows, where a drive may be missing
        check = doctor._disk("disk, data", tmp_path, "note")
    assert check.state == "note"
    assert tmp_path.anchor in check.text


def test_wrong_arithmetic_and_old_packages_are_named(monkeypatch: pytest.MonkeyPatch, cnnlab: Command) -> None:
    monkeypatch.setattr(doctor, "_TOLERANCE", dict.fromkeys(doctor._TOLERANCE, 0.0))
    monkeypatch.setattr(
        doctor.metadata,
        "requires",
        lambda _: ["torch>=99", "pillow<1,>=0.1", "no-such-package>=1", 'x-y-z; extra == "k"'],
    )
    answer = cnnlab("doctor", "--data-dir", "none")
    assert answer.returncode == 1
    for text in ("failed  arithmetic, float32", 'pip install "torch>=99"', "no-such-package is missing", 'pip install "pillow<1,>=0.1"',
                 "note    extras: not installed, and optional: k"):  # fmt: skip
        assert text in unwrapped(answer.stdout)


def test_verify_a_folder_names_every_damaged_image(cnnlab: Command, shapes: Path) -> None:
    answer = cnnlab("data", "verify", f"folder:{shapes}")
    assert answer.returncode == 0
    assert "train: 40 images, 3 x 20 x 20, 2 classes of 20 to 20" in answer.stdout
    (shapes / "dark" / "bad.png").write_bytes(b"")
    content = (shapes / "bright" / "01.jpg").read_bytes()
    (shapes / "bright" / "01.jpg").write_bytes(content[: len(content) // 2])
    answer = cnnlab("data", "verify", f"folder:{shapes}")
    assert answer.returncode == 1
    failed = [line for line in unwrapped(answer.stdout).splitlines() if line.startswith("failed")]
    assert len(failed) == 2
    assert {name for name in ("dark/bad.png", "bright/01.jpg") if any(name in line for line in failed)} == {
        "dark/bad.png",
        "bright/01.jpg",
    }
    assert cnnlab("data", "verify", "folder:nowhere").returncode == 1
    assert re.search(r"'digit'.*digits\b", one_line_error(cnnlab("data", "verify", "digit")))
    assert cnnlab("data", "verify", "digits").returncode == 0


def test_verify_fashion_mnist(cnnlab: Command, tmp_path: Path, fashion_folder: Path) -> None:
    folder = tmp_path / "data" / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for file in (fashion_folder / "FashionMNIST" / "raw").glob("*.gz"):
        (folder / file.name).symlink_to(file)
    answer = cnnlab("data", "verify", "fashion-mnist", "--data-dir", tmp_path / "data")
    assert answer.returncode == 0, answer.stdout
    assert len(re.findall(r"^ok .*-ubyte\.gz", unwrapped(answer.stdout), re.M)) == 4
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    answer = cnnlab("data", "verify", "fashion-mnist", "--data-dir", tmp_path / "data")
    assert answer.returncode == 1
    assert re.search(r"^failed .*t10k-labels-idx1-ubyte\.gz.*official", unwrapped(answer.stdout), re.M)
    assert re.search(r"^failed .*train-labels-idx1-ubyte\.gz.*--data fashion-mnist", unwrapped(answer.stdout), re.M)


def test_verify_a_store(cnnlab: Command, tmp_path: Path, shapes: Path) -> None:
    folder = tmp_path / "competition"
    (folder / "train").mkdir(parents=True)
    lines = ["id,label"]
    for number, file in enumerate(sorted(shapes.rglob("*.png"))):
        shutil.copy(file, folder / "train" / f"{number}.png")
        lines.append(f"{number},{file.parent.name}")
    (folder / "trainLabels.csv").write_text("\n".join(lines) + "\n")
    prepare_store(folder, store=tmp_path / "store", layout=Layout(), workers=1)
    answer = cnnlab("data", "verify", f"store:{tmp_path / 'store'}")
    assert answer.returncode == 0, answer.stdout
    assert "ok      store:" in unwrapped(answer.stdout)
    pixels = tmp_path / "store" / "train.npy"
    content = bytearray(pixels.read_bytes())
    content[-1] ^= 1
    pixels.write_bytes(content)
    answer = cnnlab("data", "verify", f"store:{tmp_path / 'store'}")
    assert answer.returncode == 1
    assert "failed  store:" in unwrapped(answer.stdout)
