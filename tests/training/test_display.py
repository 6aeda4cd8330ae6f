"""The progress display of a training."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import nbformat
import pytest
from matplotlib.figure import Figure
from nbclient import NotebookClient
from rich.console import Console

from cnnlab import Recipe, train
from cnnlab.io.errors import CnnlabError
from cnnlab.training import display


def test_progress_none_prints_nothing(quick: Recipe, capfd: pytest.CaptureFixture[str]) -> None:
    train(quick, progress="none")
    assert capfd.readouterr() == ("", "")


def test_bar_shows_epoch_loss_accuracy_speed_and_time_left(quick: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    bar = display.Bar(Console(file=screen, force_terminal=True, width=130, color_system=None))
    monkeypatch.setattr(display, "_INTERVAL", 0.0)
    monkeypatch.setattr("cnnlab.training.session.make_display", lambda _: bar)
    row = train(quick.changed(epochs=30)).run.metrics()[-1]  # the bar is drawn ten times a second
    output = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    last = (
        f"epoch 30/30  loss {row['loss']:.3f}  acc {row['train_acc']:.3f}  val acc {row['val_acc']:.3f}  "
        f"{row['images_per_second']:,.0f} images/s"
    )
    assert last in output
    assert "epoch 1/30" in output
    assert re.search(r"\d:\d\d left", output)


def test_the_bar_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    """The real command in a pseudo-terminal draws the bar, and each of its lines fits."""
    control, terminal = pty.openpty()
    command = [str(Path(sys.executable).parent / "cnnlab"), "train", "--set", "epochs=3", "--set", "limit=256"]
    env = {**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm"}
    process = subprocess.Popen(command, stderr=terminal, stdout=terminal, env=env, close_fds=True)
    os.close(terminal)
    output = b""
    while True:
        try:
            piece = os.read(control, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        output += piece
    os.close(control)
    assert process.wait(60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())
    frames = [line for line in re.split(r"[\r\n]+", text) if "epoch" in line and "acc" in line and "━" in line]
    assert any("3/3" in frame for frame in frames)
    assert max(map(len, frames)) <= 80
    assert not [frame for frame in frames if "…" in frame]  # rich has cut it off


def test_notebook_updates_one_curve_in_place(tmp_path: Path) -> None:
    code = (
        "import cnnlab\n"
        "print('before')\n"
        "result = cnnlab.train(cnnlab.RECIPES['digits'].changed(epochs=3), runs_dir='runs')\n"
        "print('after')\n"
    )
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell("print(result)")]
    )
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    first, second = notebook.cells
    pictures = [o for o in first.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 1  # one picture, updated in place
    text = "".join(o.text for o in first.outputs if o.output_type == "stream" and o.name == "stdout")
    assert text.startswith("before\ndata: 1,151 train")
    assert text.endswith("\nafter\n")
    assert "val acc" in second.outputs[0].text


@pytest.mark.parametrize(("between", "drawn"), [(1000.0, [1, 5]), (0.0, [1, 2, 3, 4, 5])])
def test_short_epochs_do_not_redraw_the_curve(
    between: float, drawn: list[int], quick: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first and the last epoch are always drawn. Drawing the others would take longer than the epochs."""
    frames: list[int] = []

    def curves(rows: list[dict[str, Any]], recipe: Recipe, title: str) -> Figure:
        if title.startswith("epoch"):  # the other figure is curves.png
            frames.append(len(rows))
        return Figure()

    monkeypatch.setattr(display, "_DRAW_INTERVAL", between)
    monkeypatch.setattr("cnnlab.training.curves.curves", curves)
    monkeypatch.setattr("IPython.display.display", lambda image, display_id: MagicMock())
    monkeypatch.setattr("cnnlab.training.session.make_display", lambda _: display.Notebook())
    train(quick.changed(epochs=5))
    assert frames == drawn


def test_an_unknown_display_suggests_a_known_one() -> None:
    with pytest.raises(CnnlabError, match="'line'.*lines"):
        display.make_display("line")
