"""The lessons as pages of the site, with the outputs of their cells if they have been run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from cnnlab.chapter import lessons

Outputs = list[list[dict[str, Any]]]  # of each code cell of a lesson in order, as in a notebook

_NOTEBOOKS = {
    "en": "`cnnlab lessons copy FOLDER` gives all lessons as notebooks. [中文]({}.zh.md)",
    "zh": "`cnnlab lessons copy FOLDER --language zh` 把全部课程复制为笔记本。[English]({}.md)",
}
_SOLUTION = {"en": "Solution", "zh": "答案"}
_PICTURE = {"en": "Picture drawn by the cell above", "zh": "上方单元格绘制的图"}
# The outputs are the same in both languages. These tables translate the descriptions of their pictures
# (cnnlab.chapter.lessons.show, the curve of a training, lesson 10) and the words in them that are not names.
_CHINESE = {
    r"Accuracy over the epochs: (.*)": r"各迭代周期的精度：\1",
    r"Loss and accuracy over the epochs; epoch (\d+): loss (\S+), train acc (\S+), (\S+) acc (\S+), (\S+) images/s":
        r"各迭代周期的损失与精度；第 \1 个迭代周期：损失 \2，训练精度 \3，\4精度 \5，每秒 \6 幅图像",
    r"(\d+) images: without titles": r"\1 幅图像",
    r"(\d+) images: (.*)": r"\1 幅图像：\2",
    r"Filters of the first convolution of (\S+)": r"\1 第一个卷积层的卷积核",
    r"An input image and its feature maps, layer (.*)": r"一幅输入图像及其特征图，层 \1",
    r"Sample images of the training set": "训练集的样本图像",
    r"(.+) over (.+): (.*)": r"\1随\2的变化：\3",
}  # fmt: skip
_WORDS = {"epoch": "迭代周期", "training images": "训练图像数", "accuracy": "精度", "training accuracy": "训练精度",
          "val": "验证", "test": "测试", "train_subset": "训练子集"}  # fmt: skip


def write(folder: Path, cache: Path | None) -> None:
    """Write all lessons into `folder`: NN_name.md, NN_name.zh.md and their pictures.

    cache: the folder of the outputs. A lesson without outputs there is run. None: write pages without outputs.
    """
    for name in lessons.lessons():
        outputs = [] if cache is None else run(name, cache)
        pictures = save_pictures(outputs, folder, name)
        for language, ending in (("en", ".md"), ("zh", ".zh.md")):
            text = page(lessons.read(name), language, _NOTEBOOKS[language].format(name), outputs, pictures)
            (folder / f"{name}{ending}").write_text(text, encoding="utf-8")


def run(name: str, cache: Path) -> Outputs:
    """Return the outputs of a lesson: from the folder `cache`, unless the lesson or the package has changed since."""
    kept = cache / f"{name}.json"
    state = checksum(name)
    if kept.is_file():
        content = json.loads(kept.read_text(encoding="utf-8"))
        if content["checksum"] == state:
            return list(content["outputs"])
    print(f"running {name}", flush=True)
    outputs = execute([cell.text for cell in lessons.read(name) if not cell.language])
    cache.mkdir(parents=True, exist_ok=True)
    content = {"checksum": state, "outputs": outputs}
    kept.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return outputs


def checksum(name: str) -> str:
    """Return a checksum of all that a lesson's outputs depend on: its code, the package, the committed results."""
    package = Path(lessons.__file__).parents[2]
    sources = Path(lessons.__file__).parent / "sources"
    results = package.parents[1] / "benchmarks" / "results"
    files = [path for path in package.rglob("*.py") if path.parent != sources] + list(results.glob("*.json"))
    state = hashlib.sha256()
    for path in sorted(files):
        state.update(path.read_bytes())
    for cell in lessons.read(name):
        state.update(cell.text.encode() if not cell.language else b"")
    return state.hexdigest()


def execute(cells: list[str]) -> Outputs:
    """Run the cells in a new kernel and return the outputs of each. Raise CellExecutionError if one fails."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(book, timeout=1800, resources={"metadata": {"path": folder}}).execute()
    return [[dict(output) for output in cell.outputs] for cell in book.cells]


def save_pictures(outputs: Outputs, folder: Path, name: str) -> dict[int, str]:
    """Save the pictures among the outputs as NAME-1.png, ... Return their file names by the outputs' id()."""
    pictures: dict[int, str] = {}
    for cell in outputs:
        for output in cell:
            if "image/png" in output.get("data", {}):
                file = f"{name}-{len(pictures) + 1}.png"
                (folder / file).write_bytes(base64.b64decode("".join(output["data"]["image/png"])))
                pictures[id(output)] = file
    return pictures


def page(cells: list[lessons.Cell], language: str, note: str, outputs: Outputs, pictures: dict[int, str]) -> str:
    """Return a lesson as a page. cells: from `lessons.read`; note: a line below the title.

    outputs: for each code cell in order, or empty; code is the same in every language. pictures: from `save_pictures`.
    """
    rest_of_outputs = iter(outputs)
    blocks: list[str] = []
    solution: list[str] = []  # the cells of one solution, which open together
    for cell in cells:
        if cell.language not in ("", language):
            continue
        lines = (
            [cell.text] if cell.language else [f"~~~~python\n{cell.text.strip()}\n~~~~"] if cell.text.strip() else []
        )
        if not cell.language:
            lines += filter(None, (_output(output, pictures, language) for output in next(rest_of_outputs, [])))
        if cell.tag == "solution":
            solution += lines
            continue
        blocks += [*_opened(solution, language), *lines]
        solution = []
    blocks += _opened(solution, language)
    title, _, rest = blocks[0].partition("\n")
    return "\n\n".join([title, note, rest.strip(), *blocks[1:]]) + "\n"


def _opened(solution: list[str], language: str) -> list[str]:
    """Return the collapsed block of a solution, or nothing without a solution."""
    lines = "\n\n".join(solution).splitlines()
    return ["\n".join([f'??? note "{_SOLUTION[language]}"', "", *(f"    {line}" for line in lines)])] if lines else []


def chinese(alt: str) -> str | None:
    """Return a picture's description in Chinese, with its names unchanged. None if it is unknown."""
    for pattern, text in _CHINESE.items():
        if match := re.fullmatch(pattern, alt, re.DOTALL):
            for i, word in enumerate(match.groups(), 1):
                text = text.replace(f"\\{i}", _WORDS.get(word, word))
            return text.replace(", ", "、")
    return None


def _output(output: dict[str, Any], pictures: dict[int, str], language: str) -> str:
    """Return a cell's output in the richest form that the page can show."""
    data = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
    if id(output) in pictures:
        alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
        alt = (chinese(alt) if language == "zh" else alt) or _PICTURE[language]
        return f"![{alt}]({pictures[id(output)]})"
    if "text/markdown" in data:
        return data["text/markdown"].strip()
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"~~~~{{.text .output}}\n{text.rstrip()}\n~~~~" if text.strip() else ""
