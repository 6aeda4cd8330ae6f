"""The book's published sections run with only their import line changed, if you have them:

    git clone https://github.com/d2l-ai/d2l-zh            # or: git clone --branch v0.17.6 .../d2l-ai/d2l-en
    CNNLAB_SECTIONS=d2l-zh pytest tests/chapter/test_manual_sections.py

The repository contains none of them. Their PyTorch listings are read from the folder and run in order, as a program and
as a notebook. So that this takes minutes on a CPU, each training is cut to one epoch of few images (`Section.images`)
at the listing's image size, and generated images replace the competition's small set unless its zip is in the data
folder. CNNLAB_SECTIONS_WHOLE=1 cuts nothing.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from cnnlab.data import data_folder

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(os.environ.get("CNNLAB_PEERS", ROOT / ".peers"))
WHOLE = os.environ.get("CNNLAB_SECTIONS_WHOLE") == "1"
IMPORT = ("from d2l import torch as d2l", "from cnnlab import d2l")


@dataclass(frozen=True)
class Section:
    """A section. path: its file. images: how many to keep of each Fashion-MNIST split. lines: its last output."""

    path: str
    images: int = 128
    lines: tuple[str, ...] = (
        r"loss \d+\.\d{3}, train acc \d\.\d{3}, test acc \d\.\d{3}",
        r"\d+\.\d examples/sec on .*",
    )


MODERN = "chapter_convolutional-modern"
SECTIONS = {
    # It defines its own train_ch6, which, like the original, needs at least five batches of 256.
    "lenet": Section("chapter_convolutional-neural-networks/lenet.md", images=1280),
    "alexnet": Section(f"{MODERN}/alexnet.md"),
    "vgg": Section(f"{MODERN}/vgg.md"),
    "nin": Section(f"{MODERN}/nin.md"),
    "googlenet": Section(f"{MODERN}/googlenet.md"),
    "batch-norm": Section(f"{MODERN}/batch-norm.md", images=1280),
    "resnet": Section(f"{MODERN}/resnet.md", images=256),
    "densenet": Section(f"{MODERN}/densenet.md", images=256),
    "kaggle-cifar10": Section("chapter_computer-vision/kaggle-cifar10.md", lines=(r"train loss \d+\.\d{3}, train acc .*",)),
}  # fmt: skip

# Runs before a section's own cells.
BEFORE = """
import importlib.util, json, sys
from pathlib import Path
options = json.loads(Path("section.json").read_text())
if importlib.util.find_spec("pandas") is None:  # the competition's section writes its answers with it
    sys.path.append(options["peers"])
if options["images"]:
    import torch
    from cnnlab.d2l import data
    everything = data.load_images
    data.load_images = lambda *args: everything(*args).take(torch.arange(options["images"]))
if options["competition"]:
    from cnnlab import d2l
    d2l.download_extract = lambda name, folder=None: options["competition"]
"""


def cells_of(text: str) -> list[str]:
    """Return a section's PyTorch listings: those whose `#@tab` (edition 1.0: `%%tab`) mark lists pytorch or all."""
    found = []
    for cell in re.findall(r"^```\{\.python \.input[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        mark = re.match(r"(?:#@|%%)tab (.*)\n", cell)
        if mark and {"pytorch", "all"} & {name.strip() for name in mark[1].split(",")}:
            found.append(cell[mark.end() :])
    return found


class _OneEpoch(ast.NodeTransformer):
    """A transformer that sets `num_epochs` to 1, also where a line assigns several names."""

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        for target in node.targets:
            together = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            pairs = zip(target.elts, node.value.elts, strict=True) if together else [(target, node.value)]
            for name, value in pairs:
                if isinstance(name, ast.Name) and name.id == "num_epochs" and isinstance(value, ast.Constant):
                    value.value = 1
        return node


def adapt_cells(cells: list[str], whole: bool = WHOLE) -> list[str]:
    """Return the cells with the import line changed and, unless `whole`, with one epoch instead of many."""
    changed = [cell.replace(*IMPORT) for cell in cells]
    return changed if whole else [ast.unparse(_OneEpoch().visit(ast.parse(cell))) for cell in changed]


def write_competition(folder: Path) -> Path:
    """Write a stand-in for the book's small set: 400 images of ten colours, their labels, and five to classify.

    With fewer images, the held-out tenth would not fill a batch, and its loader drops incomplete batches.
    """
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 216, (10, 3))
    rows = ["id,label"]
    for part, count in (("train", 400), ("test", 5)):
        (folder / part).mkdir(parents=True)
        for i in range(1, count + 1):
            pixels = np.clip(rng.normal(colours[i % 10], 25, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / part / f"{i}.png")
            if part == "train":
                rows.append(f"{i},class{i % 10}")
    (folder / "trainLabels.csv").write_text("\n".join(rows) + "\n")
    return folder


def prepare_section(name: str, section: Section, text: str, tmp_path: Path) -> list[str]:
    """Write the options and data of a section into `tmp_path` and return the cells to run there."""
    cells = cells_of(text)
    assert cells, f"{section.path} has no PyTorch listings"
    assert sum(IMPORT[0] in cell for cell in cells) >= 1
    zipped = any((folder / "kaggle_cifar10_tiny.zip").exists() for folder in (data_folder(), Path("../data")))
    generated = "" if name != "kaggle-cifar10" or zipped or WHOLE else str(write_competition(tmp_path / "tiny"))
    options = {"images": 0 if WHOLE else section.images, "competition": generated, "peers": str(PEERS / "d2l")}
    (tmp_path / "section.json").write_text(json.dumps(options | {"section": asdict(section)}))
    return [BEFORE, *adapt_cells(cells)]


def run_as_program(cells: list[str], tmp_path: Path) -> str:
    """Run the cells and return what they print. Fail if they fail or warn."""
    (tmp_path / "program.py").write_text("\n\n".join(cells), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=None if WHOLE else 580
    )
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr, run.stderr
    return run.stdout


def check_lines(printed: str, section: Section) -> None:
    for pattern in section.lines:
        assert re.search(rf"^{pattern}$", printed, re.MULTILINE), printed


# Our own text in the form of a published section.
OWN = """# A section

```{.python .input}
from d2l import mxnet as d2l
raise NotImplementedError
```

```{.python .input}
#@tab pytorch
from d2l import torch as d2l
import torch
from torch import nn
```

```{.python .input  n=3}
#@tab mxnet, tensorflow
raise NotImplementedError
```

```{.python .input}
#@tab mxnet, pytorch
net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
```

```{.python .input}
#@tab all
lr, num_epochs, batch_size = 0.1, 20, 32
train_iter, test_iter = d2l.load_data_fashion_mnist(batch_size)
d2l.train_ch6(net, train_iter, test_iter, num_epochs, lr, d2l.try_gpu())
```

```python
raise NotImplementedError
```
"""


def test_only_the_import_of_a_listing_is_changed() -> None:
    cells = cells_of(OWN)
    assert [cell.splitlines()[0] for cell in cells] == [
        IMPORT[0], "net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))", "lr, num_epochs, batch_size = 0.1, 20, 32",
    ]  # fmt: skip
    assert adapt_cells(cells, whole=True) == ["\n".join([IMPORT[1], *cells[0].splitlines()[1:], ""]), *cells[1:]]
    assert "(0.1, 1, 32)" in adapt_cells(cells, whole=False)[2]
    assert cells_of("```{.python .input}\n%%tab pytorch\nx = 1\n```\n") == ["x = 1\n"]


def test_a_section_written_for_this_test_runs(fashion_folder: Path, tmp_path: Path) -> None:
    section = Section("own.md", images=160)
    printed = run_as_program(prepare_section("own", section, OWN, tmp_path), tmp_path)
    check_lines(printed, section)
    assert (tmp_path / "figures" / "curve-1.png").exists()


@pytest.fixture(scope="module")
def sections() -> Path:
    folder = os.environ.get("CNNLAB_SECTIONS")
    if not folder:
        pytest.skip("CNNLAB_SECTIONS names no folder with the book's sections")
    return Path(folder).absolute()


def text_of(section: Section, folder: Path) -> str:
    text = (folder / section.path).read_text(encoding="utf-8")
    if "d2l.Trainer(" in text:
        pytest.skip("this is edition 1.0, which is written with classes of its own; v0.17.6 is meant")
    return text


@pytest.mark.needs_sections
@pytest.mark.timeout(0 if WHOLE else 600)
@pytest.mark.parametrize("name", SECTIONS)
def test_a_published_section_runs_as_a_program(name: str, sections: Path, fashion_folder: Path, tmp_path: Path) -> None:
    section = SECTIONS[name]
    printed = run_as_program(prepare_section(name, section, text_of(section, sections), tmp_path), tmp_path)
    check_lines(printed, section)
    assert list((tmp_path / "figures").glob("curve-*.png"))
    if name == "kaggle-cifar10":
        rows = (tmp_path / "submission.csv").read_text().splitlines()
        assert rows[0] == "id,label"
        assert [row.partition(",")[0] for row in rows[1:]] == ["1", "2", "3", "4", "5"]


@pytest.mark.needs_sections
@pytest.mark.timeout(0 if WHOLE else 600)
@pytest.mark.parametrize("name", ["lenet", "batch-norm", "kaggle-cifar10"])
def test_a_published_section_runs_as_a_notebook(
    name: str, sections: Path, fashion_folder: Path, tmp_path: Path
) -> None:
    section = SECTIONS[name]
    cells = prepare_section(name, section, text_of(section, sections), tmp_path)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    streams = [o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "stream"]
    check_lines("".join(o.text for o in streams if o.name == "stdout"), section)
    for cell in notebook.cells:
        pictures = [o for o in cell.get("outputs", []) if "image/svg+xml" in o.get("data", {})]
        trains = re.search(r"^(d2l\.train_ch6|train_ch6|train)\(net", cell.source, re.MULTILINE)
        assert len(pictures) == bool(trains), cell.source
