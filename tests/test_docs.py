"""The documents are true: tables come from committed results, and the named files and commands exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from cnnlab.chapter import lessons
from cnnlab.defaults import choose_recipe
from cnnlab.models import MODELS
from cnnlab.recipes import RECIPES
from conftest import script

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README.zh.md")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
}


@pytest.fixture(scope="module")
def tables() -> Any:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_match_the_committed_results(tables: Any) -> None:
    assert tables.PAGES.keys() == {name for name, text in PAGES.items() if tables.BEGIN in text}
    for name in tables.PAGES:
        assert tables.page(name) == PAGES[name], name


@pytest.mark.parametrize("name", ["report.md", "report.zh.md"])
def test_the_table_of_reports_is_current(name: str) -> None:
    assert f"-->\n{script('make_reports').table(name)}<!--" in (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_a_users_own_result_does_not_change_a_table(tables: Any, tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    for name in ("vs-d2l_a.json", "vs-d2l_own.json"):
        (folder / name).write_text("{}")
    assert len(tables.published(tmp_path)) == 2  # an unpacked archive without git: all results
    tables.published.cache_clear()
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "add", "benchmarks/results/vs-d2l_a.json"], check=True)
    assert tables.published(tmp_path) == [folder / "vs-d2l_a.json"]


def test_comments_of_recipes_state_the_newest_measurement(tables: Any) -> None:
    measured: dict[str, dict[str, Any]] = {}
    for path in tables.published():
        found = json.loads(path.read_text())
        if found["benchmark"].startswith(("recipe-seeds", "fashion-speed", "cifar-speed")):
            for name, figures in found["recipes"].items():
                date = found["environment"]["date"]
                if date > measured.get(name, {"date": ""})["date"]:
                    measured[name] = {**figures, "date": date}
    for path in tables.published(files="records/*/record.json"):
        record = json.loads(path.read_text())
        measured[record["recipe"]["name"]] = {
            "accuracy": record["accuracy"], "train_seconds": record["training_seconds"]
        }  # fmt: skip
    source = (ROOT / "src" / "cnnlab" / "recipes.py").read_text(encoding="utf-8")
    variables = dict(re.findall(r'^(_\w+) = (?:(?!\n\n).)*?name="([^"]+)"', source, re.M | re.S))
    checked = set()
    for comment, code in re.findall(r"\n +# ((?:train|val|test) acc [^\n]*)\n(.*?)(?=\n +# |\Z)", source, re.S):
        named = re.search(r'name="([^"]+)"', code) or re.search(r"_[A-Z_]+", code)
        assert named
        name = named[1] if named.lastindex else variables[named[0]]
        if name.startswith("cifar/"):  # one seed each; their figures are in the competition's results
            continue
        figures = measured[name]
        seconds = figures.get("train_seconds", {}).get("mean") or mean(s["total_seconds"] for s in figures["per_seed"])
        assert f" {seconds:.0f} s" in comment, (name, seconds)
        stated = re.findall(r"(0\.\d+) ± (0\.\d+)", comment)
        known = [v for v in figures.values() if isinstance(v, dict) and isinstance(v.get("std"), float)]
        for value, deviation in stated:
            digits = len(value) - 2
            spreads = [(f"{v['mean']:.{digits}f}", f"{v['std']:.{digits}f}") for v in known]
            assert (value, deviation) in spreads, (name, comment)
        assert stated
        checked.add(name)
    assert len(checked) == 21, checked


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page]):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_the_file_map_names_every_module() -> None:
    text = (ROOT / "README.md").read_text()
    for path in (ROOT / "src" / "cnnlab").glob("*.py"):
        if not path.name.startswith("__"):
            assert path.name in text, path.name


@pytest.mark.parametrize("name", READMES)
def test_training_commands_parse(name: str) -> None:
    found = [
        line.split("#")[0]
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
        if line.startswith("cnnlab train")
    ]
    assert len(found) >= 5
    for line in found:
        words = shlex.split(line)[2:]
        options = dict(zip(words[:-1], words[1:], strict=True))
        model = words[0] if words and not words[0].startswith("-") else None
        assert model is None or model in MODELS
        settings = [value for option, value in zip(words, words[1:], strict=False) if option == "--set"]
        chosen = choose_recipe(
            model=model, data=options.get("--data"), recipe=options.get("--recipe"), settings=settings
        )
        assert chosen.name.split(",")[0] in RECIPES


def test_every_dependency_is_documented() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    text = (ROOT / "docs" / "dependencies.md").read_text()
    extras = [r for requirements in project["project"]["optional-dependencies"].values() for r in requirements]
    groups = project["dependency-groups"]
    developing = [r for r in (*groups["dev"], *groups["docs"]) if isinstance(r, str)]  # not the include-group
    table = " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| "))
    for place, requirements in ((table, [*project["project"]["dependencies"], *extras]), (text, developing)):
        for name in {re.split(r"[><=\[]", requirement)[0] for requirement in requirements} - {"cnnlab"}:
            assert re.search(rf"\b{re.escape(name)}\b", place), name


def test_chinese_pages_use_the_terms_of_d2l_zh() -> None:
    """The terms of the book's Chinese edition: 汇聚, 小批量, 迭代周期, 全连接层, 卷积核, 精度, 增广, 索引."""
    other = r"处理器|池化|批次|捷径|主干|滤波器|线性层|准确率|测试时增强|下标|做加法|(?<!迭代)周期"
    pages = {p.name: p.read_text(encoding="utf-8") for p in (*ROOT.glob("*.zh.md"), *ROOT.glob("docs/*.zh.md"))}
    for name in lessons.lessons():
        pages[name] = "\n".join(cell.text for cell in lessons.read(name) if cell.language == "zh")
    page = ROOT / "src" / "cnnlab" / "inspect" / "report" / "page" / "text.js"
    pages[page.name] = page.read_text(encoding="utf-8")
    assert len(pages) >= 15
    assert {name: found for name, text in pages.items() if (found := re.findall(other, text))} == {}
