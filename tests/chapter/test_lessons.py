"""The lessons: each runs from top to bottom, with the same code in both languages, and a copy overwrites nothing."""

from __future__ import annotations

import ast
import builtins
import json
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
import torch
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

import browser
from cnnlab import Recipe, evaluate_run, train
from cnnlab.chapter import lessons
from cnnlab.chapter.experiments import cells
from cnnlab.chapter.lessons import LANGUAGES, committed, show
from cnnlab.inference import load_network
from cnnlab.io.errors import CnnlabError
from conftest import Command, one_line_error, script

ROOT = Path(__file__).resolve().parents[2]
NAMES = lessons.lessons()
# The most epochs per training (default: 6): enough to learn something. The large networks need fewer.
EPOCHS = {"03_alexnet": 4, "04_vgg": 4, "05_nin": 3, "06_googlenet": 2, "08_resnet": 2, "09_densenet": 1}


def tag_of(cell: dict[str, Any]) -> str:
    return "".join(cell["metadata"].get("tags", []))


def code(book: dict[str, Any]) -> list[str]:
    return ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    """A kernel shared by all lessons: starting ten that each import torch takes a minute."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env={**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))})
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_runs_from_top_to_bottom(name: str, tmp_path: Path, kernel: KernelManager) -> None:
    """In a real kernel, solutions included. Trainings get few epochs, those of solutions one epoch of 300 images."""
    # The code is the same in both languages (tested below), so each lesson runs in one of them.
    language = LANGUAGES[NAMES.index(name) % 2]
    book = nbformat.v4.new_notebook()
    for cell in lessons.read(name):
        if cell.language in ("", language):
            new = nbformat.v4.new_markdown_cell if cell.language else nbformat.v4.new_code_cell
            book.cells.append(new(cell.text, metadata={"tags": [cell.tag] if cell.tag else []}))
    start = (
        "%reset -f\nimport os, cnnlab.training.train\nos.chdir({!r})\ndef short(*args, epochs=6, **kw):\n"
        "    return cnnlab.training.train.train(*args, **kw, epochs=min(epochs, {}))\ncnnlab.train = short\n"
        "import cnnlab.competition.trainings\ncnnlab.competition.train = lambda work, recipe: "
        "cnnlab.competition.trainings.train(work, recipe.changed(epochs=6))"
    )
    cut = "cnnlab.train = lambda *args, **kw: cnnlab.training.train.train(*args, **{**kw, 'epochs': 1, 'limit': 300})"
    exercises = next(i for i, cell in enumerate(book.cells) if tag_of(cell) == "exercise")
    book.cells.insert(exercises, nbformat.v4.new_code_cell(f"import cnnlab.training.train\n{cut}"))
    book.cells.insert(0, nbformat.v4.new_code_cell(start.format(str(tmp_path), EPOCHS.get(name, 6))))
    client = NotebookClient(book, km=kernel, timeout=300, interrupt_on_timeout=True)
    try:
        client.execute()
    finally:
        client.kc.stop_channels()  # else its sockets stay open, since the kernel is not the client's
    ran = [c for c in book.cells if c.cell_type == "code"]
    printed = "".join(o.text for c in ran for o in c.outputs if o.output_type == "stream")
    assert "Warning" not in printed
    # Where rich displays a table itself instead of printing it as text, the output holds HTML.
    assert not [o for c in ran for o in c.outputs if "text/html" in o.get("data", {})]
    accuracies = [float(a) for a in re.findall(r"val acc (\d\.\d+)", printed)]
    if name == "01_classical":
        accuracies = [float(a) for a in re.findall(r"HOG (\d\.\d+)", printed)]
    assert max(accuracies) > 0.9  # something was learned
    pictures = [o for c in ran for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3
    tables = [o.data["text/markdown"] for c in ran for o in c.outputs if "text/markdown" in o.get("data", {})]
    assert tables  # the committed results
    for cell in ran:
        if tag_of(cell) == "solution":
            assert cell.outputs, cell.source
    # Every picture has a text alternative, in Chinese, too.
    assert all(script("site_lessons").chinese(o.metadata["image/png"]["alt"]) for o in pictures)


@pytest.mark.parametrize("name", NAMES)
def test_prose_is_in_both_languages_and_code_is_shared(name: str) -> None:
    found = lessons.read(name)
    prose = [c for c in found if c.language]
    assert [c.language for c in prose] == ["en", "zh"] * (len(prose) // 2)
    for number, cell in enumerate(found):
        assert cell.text or cell.tag == "answer"
        if cell.language == "en":  # its translation comes next, with the same tag
            other = found[number + 1]
            assert (other.language, other.tag) == ("zh", cell.tag)
            heads = [[line.split()[0] for line in c.text.splitlines() if line.startswith("#")] for c in (cell, other)]
            assert heads[0] == heads[1]
            assert not re.search("[\u4e00-\u9fff]", cell.text)
            assert re.search("[\u4e00-\u9fff]", other.text)
        elif not cell.language:
            assert not re.search("[\u4e00-\u9fff]", cell.text)
    assert found[0].text.startswith("# ")
    books = {language: lessons.notebook(name, language) for language in LANGUAGES}
    assert code(books["en"]) == code(books["zh"])
    assert lessons.title(name, "en") != lessons.title(name, "zh") or name in ("03_alexnet",)


def test_wrapped_chinese_is_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "_SOURCES", tmp_path)
    text = "# # 标题\n#\n# 第一行，\n# 第二行 LeNet\n# 第三行\n"
    (tmp_path / "one.py").write_text(f'# %% [markdown] lang="zh"\n{text}', encoding="utf-8")
    assert lessons.read("one")[0].text == "# 标题\n\n第一行，第二行 LeNet\n第三行"


@pytest.mark.parametrize("name", NAMES)
def test_jupytext_reads_the_same_cells(name: str) -> None:
    book = jupytext.read(Path(lessons.__file__).parent / "sources" / f"{name}.py")
    ours = lessons.read(name)
    assert [cell.cell_type == "code" for cell in book.cells] == [not cell.language for cell in ours]
    for theirs, cell in zip(book.cells, ours, strict=True):
        assert theirs.metadata.get("lang", "") == cell.language
        assert tag_of(theirs) == cell.tag
        # Ours joins the lines of Chinese prose.
        assert theirs.source.replace("\n", "") == cell.text.replace("\n", "")


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_needs_no_solution(name: str) -> None:
    """Every name that a copy without solutions uses is defined in that copy."""
    known = set(dir(builtins))
    for text in code(lessons.notebook(name, solutions=False)):
        tree = list(ast.walk(ast.parse(text)))
        known |= {node.id for node in tree if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        known |= {node.arg for node in tree if isinstance(node, ast.arg)}
        known |= {node.name for node in tree if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for node in tree:
            if isinstance(node, ast.Import | ast.ImportFrom):
                known |= {alias.asname or alias.name for alias in node.names}
        assert {node.id for node in tree if isinstance(node, ast.Name)} <= known, text


@pytest.mark.parametrize("name", NAMES)
def test_every_exercise_has_a_solution(name: str) -> None:
    book = lessons.notebook(name)
    tags = [tag_of(cell) or "lesson" for cell in book["cells"]]
    first = tags.index("exercise")
    assert "lesson" not in tags[first:]
    assert set(tags[:first]) == {"lesson"}
    exercises = " ".join(tags[first:]).split("exercise")[1:]
    assert len(exercises) >= 2
    for number, rest in enumerate(exercises, 1):
        assert re.fullmatch(r" answer( solution)+ ?", rest), (number, rest)
    numbered = [c["source"][0] for c in book["cells"] if tag_of(c) == "exercise"]
    assert [re.findall(r"\d+", text)[0] for text in numbered] == [str(i) for i in range(1, len(numbered) + 1)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_copies_are_valid_notebooks_and_their_solutions_are_hidden(language: str, tmp_path: Path) -> None:
    files = lessons.copy(tmp_path / "new" / "folder", language=language)
    assert [f.stem for f in files] == NAMES
    assert len(files) == 10
    for file in files:
        book = json.loads(file.read_text(encoding="utf-8"))
        nbformat.validate(nbformat.from_dict(book))
        assert all(not c.get("outputs") for c in book["cells"])
        for cell in book["cells"]:
            if tag_of(cell) == "solution":
                assert cell["cell_type"] == "markdown"
                assert cell["source"][0].startswith("<details>")
                assert cell["source"][-1] == "</details>"
        text = "".join("".join(cell["source"]) for cell in book["cells"])
        for cell in lessons.read(file.stem):
            if cell.tag == "solution" and cell.language in ("", language):
                assert ("| training |" if "show.seeds(" in cell.text else cell.text.strip()) in text


@pytest.mark.parametrize(("language", "template"), [("en", "lab"), ("zh", "basic")])
def test_an_exported_page_shows_a_solution_only_when_it_is_opened(language: str, template: str, tmp_path: Path) -> None:
    nbconvert = pytest.importorskip("nbconvert", reason="nbconvert is not installed: pip install --group dev")
    book = nbformat.from_dict(lessons.notebook("02_lenet", language))
    for cell in book.cells:
        cell.source = "".join(cell.source)
    exporter = nbconvert.HTMLExporter(template_name=template, mathjax_url="", require_js_url="")
    page = tmp_path / f"{template}.html"
    page.write_text(exporter.from_notebook_node(book)[0], encoding="utf-8")
    with browser.chromium() as tab:
        tab.go(page.as_uri())
        code = tab.page.locator("details pre").filter(has_text="def changed(relu")
        assert code.count() == 1
        assert "def changed(relu" not in tab.page.inner_text("body")
        tab.page.locator("summary").nth(1).click()
        assert code.is_visible()
        assert "def changed(relu" in tab.page.inner_text("body")


@pytest.mark.parametrize("language", LANGUAGES)
def test_copies_without_solutions_have_none(language: str, tmp_path: Path) -> None:
    for file in lessons.copy(tmp_path, language=language, solutions=False):
        book = json.loads(file.read_text(encoding="utf-8"))
        nbformat.validate(nbformat.from_dict(book))
        tags = [tag_of(cell) for cell in book["cells"]]
        assert "solution" not in tags
        assert tags.count("answer") == tags.count("exercise") >= 2
        content = "\n".join("".join(cell["source"]) for cell in book["cells"])
        for cell in lessons.read(file.stem):
            if cell.tag == "solution":
                assert cell.text not in content


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    lessons.copy(tmp_path / "full")
    before = {p: p.read_bytes() for p in (tmp_path / "full").iterdir()}
    with pytest.raises(CnnlabError, match=r"01_classical\.ipynb"):
        lessons.copy(tmp_path / "full", language="zh", solutions=False)
    assert {p: p.read_bytes() for p in (tmp_path / "full").iterdir()} == before
    # One existing file stops the copy, so no incomplete set is left.
    mine = tmp_path / "mine" / "05_nin.ipynb"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(CnnlabError, match="05_nin"):
        lessons.copy(tmp_path / "mine")
    assert [p.name for p in mine.parent.iterdir()] == ["05_nin.ipynb"]
    assert mine.read_text() == "mine"


def test_bad_sources_are_reported_with_their_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "_SOURCES", tmp_path)
    for text, message in (
        ("x = 1\n", "line 1.*'x = 1'"),
        ('# %% [markdown] lang="fr"\n', "line 1.*fr"),
        ('# %% tags=["secret"]\n', "line 1.*secret"),
        ('# %% [markdown] lang="en"\n# # A\nx = 1\n', "line 3.*'x = 1'"),
    ):
        (tmp_path / "bad.py").write_text(text)
        with pytest.raises(ValueError, match=message):
            lessons.read("bad")


# The command


def test_the_command_lists_and_copies(cnnlab: Command, tmp_path: Path) -> None:
    for arguments in ((), ("list",)):
        lines = cnnlab("lessons", *arguments).stdout.splitlines()
        assert [line.split()[0] for line in lines] == NAMES
        assert any("1.3 NiN" in line for line in lines)
    assert "网络中的网络" in cnnlab("lessons", "list", "--language", "zh").stdout
    answer = cnnlab("lessons", "copy", "class", "--language", "zh", "--no-solutions")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == [str(Path("class") / f"{name}.ipynb") for name in NAMES]
    assert "solution" not in Path("class/02_lenet.ipynb").read_text(encoding="utf-8")
    assert "01_classical.ipynb" in one_line_error(cnnlab("lessons", "copy", "class"))
    assert "'fr'" in one_line_error(cnnlab("lessons", "copy", "other", "--language", "fr"))
    assert not Path("other").exists()
    Path("file").write_text("")
    assert "File exists" in one_line_error(cnnlab("lessons", "copy", "file"))


# What lessons show


def test_lessons_show_the_committed_results() -> None:
    folder = committed.results_folder()
    assert folder == ROOT / "benchmarks" / "results"
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    inside = Path(show.__file__).parent.relative_to(ROOT / "src") / "results"
    assert wheel["force-include"] == {"benchmarks/results": inside.as_posix()}

    newest = max(folder.glob("reproduce-as-printed_*.json"), key=lambda p: p.stem[-10:])
    (row,) = [r for r in json.loads(newest.read_text())["rows"] if r["name"] == "lenet"]
    table = show.results("lenet").data
    assert f"| as printed, 5 seeds | {' | '.join(cells(row))} |" in table
    assert "| printed | 0.469 | 0.823 | 0.779 |" in table
    with pytest.raises(CnnlabError, match=r"'lenett'.*lenet\b"):
        show.results("lenett")
    accuracy = newest_measurement("fast/alexnet")["final_acc"]
    assert (
        f"`fast/alexnet`, 4 epochs, 5 seeds | | | {accuracy['mean']:.3f} ± {accuracy['std']:.3f} |"
        in show.results("alexnet").data
    )
    for name in ("vgg11", "nin", "lenet-bn", "resnet18", "googlenet", "densenet"):  # recipes that the lessons mention
        assert f"`fast/{name}`" in show.results(name).data
    kaggle = json.loads(max(folder.glob("competition-1h_*.json")).read_text())
    assert f"{kaggle['validation_accuracy_by_views']['shift']:.4f}" in show.competition().data


def newest_measurement(recipe: str) -> dict[str, Any]:
    """Return the newest measurement of a recipe on Fashion-MNIST among all result files."""
    found = [json.loads(path.read_text()) for path in committed.results_folder().glob("*.json")]
    having = [f for f in found if f["benchmark"] == "fashion-speed" or f["benchmark"].startswith("fashion-speed-")]
    last = max((f for f in having if recipe in f["recipes"]), key=lambda f: f["environment"]["date"])
    return dict(last["recipes"][recipe])


def test_experiments_that_were_not_run_are_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committed, "results_folder", lambda: tmp_path)
    table = show.results("alexnet", "hog-linear").data
    assert "| 1.1 | AlexNet | not run here |" in table
    assert "| printed | 0.326 | 0.881 | 0.879 | 4,188 |" in table
    assert "| start | HOG, linear SVM | not run here |" in table
    rows = [line for line in show.competition().data.splitlines() if not line.startswith("|--")]
    assert len(rows) == 1
    # A limited row never hides an as-printed one, whatever its label.
    row = {"name": "nin", "section": "1.3", "title": "NiN", "printed": dict.fromkeys(("loss", "train_acc", "test_acc", "examples_per_second")),
           **dict.fromkeys(("loss", "train_acc", "examples_per_second", "images_per_second"))}  # fmt: skip
    for label, accuracy, limited in (("as-printed", 0.9, ""), ("limited", 0.2, "1 of 10 epochs")):
        content = {
            "environment": {"date": "2026-01-01"},
            "rows": [{**row, "limited": limited, "test_acc": {"n": 1, "mean": accuracy, "std": None}}],
        }
        (tmp_path / f"reproduce-{label}_here_2026-01-01.json").write_text(json.dumps(content))
    assert "| 1.3 | NiN | as printed, 1 seed |  |  | 0.900 |  |  |" in show.results("nin").data


def test_pictures_are_png_files_with_text_alternatives(quick: Recipe) -> None:
    result = train(quick)
    for picture in (
        show.compare({"a": result, "b": result}),
        show.filters(result),
        show.maps(result, "0"),
        show.maps(result, "0", "3", image=5, count=4),
        show.hardest(result, 5),
        show.grid(torch.zeros(3, 8, 8), ["$a$", "b", "c"]),  # all of one value
        show.grid(torch.rand(11, 3, 8, 8), together=True, columns=4),
        show.grid([torch.rand(4, 4), torch.rand(1, 8, 8), torch.rand(1, 8, 16)]),
        show.plot([1, 2, 4], {"a": [0.1, 0.2, 0.3], "b": [0.3, 0.2, 0.1]}, "x", "y"),
    ):
        assert picture.data.startswith(b"\x89PNG")
        assert script("site_lessons").chinese(picture.alt), picture.alt
    with pytest.raises(CnnlabError, match="'x'.*0, 1"):
        show.maps(result, "x")
    with pytest.raises(CnnlabError, match="'8'.*feature maps"):
        show.maps(result, "8")
    with pytest.raises(CnnlabError, match="empty"):
        show.grid([])


def test_the_hardest_images_list_mistakes_first(quick: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(show, "grid", lambda images, titles: shown.append((images, titles)))
    result = train(quick)
    show.hardest(result, 300)
    ((images, titles),) = shown
    wrong = ["→" in title for title in titles]
    assert wrong == sorted(wrong, reverse=True)
    accuracy = evaluate_run(result.run, split="validation").result.accuracy
    assert sum(wrong) == round((1 - accuracy) * len(images))
    sure = [float(title.split("(")[1].rstrip(")")) for title in titles if "(" in title]
    assert sure == sorted(sure)


def test_held_out_images_are_preprocessed(quick: Recipe) -> None:
    result = train(quick)
    images, labels = show.held_out(result, 1000)  # all of them
    model = load_network(result.run)
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).float().mean()
    assert float(accuracy) == pytest.approx(result.summary["best"])
    assert torch.equal(show.held_out(result, 3)[0], images[:3])


def test_shapes_matches_the_table_of_the_show_command(cnnlab: Command) -> None:
    assert show.shapes("nin").splitlines() == cnnlab("show", "nin").stdout.splitlines()
