"""The rules of this package: which names are public, which module may import which, and that --help is quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import cnnlab

SOURCE = Path(cnnlab.__file__).parent

# A subpackage may import only from those to its left. Those separated by a comma may not import each other.
RULE = (
    "io < recipe < recipes < defaults < models < device < data < training < inference < inspect < export < serve < competition, sweep < chapter, d2l"
    " < machine < app < cli < __main__"
)
LAYER = {name: i for i, names in enumerate(RULE.split(" < ")) for name in names.split(", ")}


def subpackage(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_subpackages(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cnnlab."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "cnnlab":
            found |= {alias.name for alias in node.names} & LAYER.keys()
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("cnnlab.")}
    return found


def modules() -> list[Path]:
    return [p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py"]


def test_imports_follow_the_rule() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)} imports {there}"
        for path in modules()
        for there in imported_subpackages(path) - {subpackage(path)}
        if there not in LAYER or LAYER[there] >= LAYER[subpackage(path)]
    ]
    assert not wrong, wrong


def test_models_import_only_errors() -> None:
    for path in (SOURCE / "models").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cnnlab"):
                assert (node.module or "").startswith(("cnnlab.models", "cnnlab.io.errors")), path


def test_recipe_needs_no_torch() -> None:
    code = "import sys, cnnlab.recipe, cnnlab.recipes, cnnlab.defaults; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; sys.argv = ['cnnlab', 'train', '--help']\n"
        "from cnnlab.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'sklearn'} & sys.modules.keys(), 'slow imports'"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "--recipe" in answer.stdout


def test_public_names() -> None:
    assert set(cnnlab.__all__) == {
        "Classifier", "CnnlabError", "DATASETS", "Evaluation", "Export", "FoldsResult", "ImageSet", "MODELS", "Prediction", "Predictions", "RECIPES", "RangeTest", "Recipe", "Report", "report", "Result",
        "Run", "RunEvaluation", "SeedsResult", "TrainingInterrupted", "__version__", "build_model", "evaluate_run", "export_run",
        "inspect_run", "Inspection", "list_runs", "load_images", "load_model", "loader", "lr_find", "open_run", "predict", "resume", "set_threshold", "Threshold", "train", "train_folds", "train_seeds", "train_step",
    }  # fmt: skip
    for name in cnnlab.__all__:
        assert getattr(cnnlab, name) is not None
    assert dir(cnnlab) == sorted(cnnlab.__all__)


def test_public_functions_and_classes_have_docstrings() -> None:
    for name in cnnlab.__all__:
        thing = getattr(cnnlab, name)
        if callable(thing):
            assert (thing.__doc__ or "").strip(), name
