"""The benchmark scripts at their smallest size, on the CPU, with results in a temporary folder."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
# Script, options, and the keys that its result must have.
TINY: list[tuple[str, list[str], set[str]]] = [
    ("vs_d2l", [], {"peer", "n", "epochs", "networks"}),
    # A minute of CPU time for its four peers: CNNLAB_PEERS=1 pytest tests/test_benchmarks.py
    *([("vs_reference", [], {"n", "left_out", "networks"})] if os.environ.get("CNNLAB_PEERS") else []),
    ("drop_in", [], {"peer", "n", "networks"}),
    ("fashion_speed", ["--device", "cpu"], {"n", "split_seed", "recipes"}),
    ("cifar_speed", ["--device", "cpu"], {"n", "split_seed", "recipes"}),
    ("export", [], {"batch", "networks", "forms", "left_out"}),
    ("saving", ["--device", "cpu"], {"n", "file_system", "networks"}),
]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run_tiny(script: str, options: list[str], out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any] | None:
    """Run a script's `main` in this process and return its result, or None if it writes none."""
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / f"{script}.py"), "--tiny", "--out", str(out), *options])
    importlib.import_module(script).main()
    files = list(out.glob("*.json"))
    return json.loads(files[0].read_text()) if files else None


@pytest.mark.slow
@pytest.mark.parametrize(("script", "options", "keys"), TINY)
def test_a_tiny_run_writes_its_result(
    script: str,
    options: list[str],
    keys: set[str],
    fashion_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("psutil")
    monkeypatch.setenv("CNNLAB_DATA", str(fashion_folder))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for the processes that the script starts
    published = sorted((BENCHMARKS / "results").iterdir())
    result = run_tiny(script, options, tmp_path / "results", monkeypatch)
    if result is None:
        output = capsys.readouterr().out
        assert output.startswith("skipped: ")
        pytest.skip(output.strip())
    assert {"benchmark", "command", "environment", *keys} <= result.keys()
    assert sorted((BENCHMARKS / "results").iterdir()) == published


def test_the_service_benchmark_runs_on_a_tiny_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uvicorn")
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent / "tests" / "serve"))
    file = importlib.import_module("tiny").tiny_onnx(tmp_path / "tiny.onnx")
    result = run_tiny("serve", ["--onnx", str(file)], tmp_path / "results", monkeypatch)
    assert result is not None
    found = result["networks"]["tiny"]
    assert found["same_labels"]
    assert {row["failed"]["max"] for side in found["sides"].values() for row in side.values()} == {0}


def test_lesson_seeds_run_on_a_tiny_lesson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a lesson of two short trainings: those of the real lessons take minutes."""
    from cnnlab.chapter import lessons

    source = """# %% [markdown] lang="en"
# # One

# %%
import cnnlab

results = [cnnlab.train("digits", epochs=1, limit=32, **more) for more in ({}, {"learning_rate": 0.02})]
print(results[0])
"""
    (tmp_path / "01_one.py").write_text(source)
    monkeypatch.setattr(lessons, "_SOURCES", tmp_path)
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["lesson_seeds.py", "01_one", "--seeds", "2", "--out", str(out)])
    importlib.import_module("lesson_seeds").main()
    (file,) = out.glob("lesson-01-one_*.json")
    found = json.loads(file.read_text())
    assert found["n"] == 2
    assert list(found["trainings"]) == ["lenet-bn", "lenet-bn, learning_rate=0.02"]
    for figures in found["trainings"].values():
        assert [len(epochs) for epochs in figures["val_acc"]] == [1, 1]
        assert figures["loss"][0] != figures["loss"][1]  # the seeds differ


@pytest.mark.slow
def test_a_tiny_gpu_suite_runs(fashion_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNLAB_DATA", str(fashion_folder))
    monkeypatch.setattr("cnnlab.machine.peak.SIZES", (64,))
    parts = ["fashion", "chapter", "profile"]  # the other parts do the same with other networks
    result = run_tiny("gpu_suite", ["--device", "cpu", "--parts", *parts], tmp_path, monkeypatch)
    assert result is not None
    assert list(result["parts"]) == parts
    profile = result["parts"]["profile"]["found"]["lenet-bn, batch 64"]
    calls = {kernel["name"]: kernel["calls_per_step"] for kernel in profile["kernels"]}
    assert calls["aten::convolution_backward"] == 2  # one per convolution of the network
    assert calls["aten::native_batch_norm"] == 4
    times = [kernel["us_per_step"] for kernel in profile["kernels"]]
    assert times == sorted(times, reverse=True)
    assert 0 < sum(times) <= profile["us_per_step_of_all"] * 1.001


def test_default_folder_of_results_is_ignored_by_git() -> None:
    import _common
    import _speed

    out = _speed.parser("", []).parse_args([]).out
    assert out == _common.OUT
    assert not out.is_relative_to(_common.PUBLISHED)
    assert "/build/" in (BENCHMARKS.parent / ".gitignore").read_text().splitlines()
    for script in BENCHMARKS.glob("*.py"):  # no script writes elsewhere
        text = script.read_text()
        assert text.count("write_result(") - text.count("def write_result(") <= text.count("args.out)"), script.name


def test_the_summary_of_pairs_has_ratios_and_medians() -> None:
    from _common import summary

    run = {"images": 10, "seconds": 2.0, "train_seconds": 1.0, "process_seconds": 3.0, "images_per_second": 10.0,
           "peak_pss_mib": 5.0, "peak_rss_mib": 6.0}  # fmt: skip
    slow = {**run, "train_seconds": 4.0, "seconds": 6.0, "process_seconds": 6.0, "images_per_second": 2.5}
    setup = {side: {"plan": {"dtype": kind}, "operations": 100.0}
             for side, kind in (("cnnlab", "float32"), ("cnnlab-auto", "bfloat16"))}  # fmt: skip
    pairs = [{"d2l": slow, "cnnlab": run, "cnnlab-auto": run}] * 3
    found = summary(pairs, "d2l", setup, {"float32": 1e4, "bfloat16": 2e4})
    assert found["speed_ratio"] == {"median": 4.0, "min": 4.0, "max": 4.0}
    assert found["whole_ratio"]["median"] == pytest.approx(3.0)
    assert found["process_ratio_median"] == 2.0
    assert found["peak_pss_mib"] == {"d2l": 5.0, "cnnlab": 5.0, "cnnlab-auto": 5.0}
    assert found["share_of_peak"] == {"d2l": 0.025, "cnnlab": 0.1, "cnnlab-auto": 0.05}


def test_networks_of_an_earlier_result_are_marked_with_its_date_and_torch() -> None:
    from tables import measured_before
    from vs_d2l import measured

    now, then = (
        {"date": f"2026-11-{day}T10:00:00", "versions": {"torch": torch}} for day, torch in ((26, "2.1"), (24, "2.0"))
    )
    networks = {
        "lenet": {},
        "nin": {"measured": measured(then)},
        "vgg": {"measured": measured(then)},
    }
    assert measured_before({"environment": now, "networks": networks}) == " (nin, vgg: torch 2.0, 2026-11-24)"
    assert measured_before({"environment": now, "networks": {"lenet": {}}}) == ""


PEERS_TABLE = """
--------------------------------------------------------------------------------
|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |
--------------------------------------------------------------------------------
|  warmup  |      1  |     0.4570  |   0.4100  |               |        0.3000  |
|          |   eval  |     0.9500  |   0.9300  |       0.9390  |       30.5000  |
--------------------------------------------------------------------------------
|       0  |      1  |     0.4570  |   0.4100  |               |        0.3000  |
|          |   eval  |     0.9500  |   0.9300  |       0.9410  |        2.6000  |
--------------------------------------------------------------------------------
|       1  |      1  |     0.4570  |   0.4100  |               |        0.3000  |
|          |   eval  |     0.9500  |   0.9300  |       0.9400  |        2.5000  |
--------------------------------------------------------------------------------
Mean: 0.9405    Std: 0.0007
"""


@pytest.mark.parametrize(
    ("acc", "seconds", "ahead"),
    [
        (0.9404, 2.0, "cnnlab"), (0.95, 2.0, "cnnlab"), (0.9404, 3.0, "peer"), (0.93, 3.0, "peer"),
        (0.93, 2.0, "neither: one is faster, the other more accurate"),
        (0.95, 3.0, "neither: one is faster, the other more accurate"),
    ],
)  # fmt: skip
def test_comparison_with_the_published_scripts_table(acc: float, seconds: float, ahead: str) -> None:
    from gpu_suite import compared, peer_runs

    theirs = peer_runs(PEERS_TABLE)
    assert theirs == [{"acc": 0.941, "seconds": 2.6}, {"acc": 0.94, "seconds": 2.5}]  # without the warm-up run
    ours = {"per_seed": [{}] * 4, "final_acc": {"mean": acc, "std": 0.001}, "race_seconds": {"mean": seconds}}
    found = compared(ours, theirs)
    assert found["who is ahead"] == ahead
    assert found["standard error of the difference"] == pytest.approx((0.0005**2 + 0.0005**2) ** 0.5, rel=1e-6)
    assert "not known" in compared("no time was left", theirs)["who is ahead"]


def test_timeout_kills_the_children_too() -> None:
    from gpu_suite import run_for

    assert run_for(60, ["sh", "-c", "echo done; exit 3"]).returncode == 3
    with pytest.raises(subprocess.TimeoutExpired) as late:
        run_for(0.3, ["sh", "-c", "sleep 60 & echo $!; wait"])
    child = int(late.value.output)
    deadline = time.monotonic() + 10
    while _is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_running(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_batch_norm_as_printed_matches_ours() -> None:
    import torch

    from cnnlab.models import build_model
    from vs_d2l import as_printed

    torch.manual_seed(0)
    ours = build_model("lenet-bn-scratch").train()
    theirs = as_printed(build_model("lenet-bn-scratch")).train()
    theirs.load_state_dict(ours.state_dict())
    assert {type(m).__module__ for m in theirs.modules() if type(m).__name__ in ("AvgPool2d", "Conv2d")} == {
        "torch.nn.modules.pooling", "torch.nn.modules.conv",
    }  # fmt: skip
    x = torch.rand(8, 1, 28, 28)
    for _ in range(2):
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours[1].moving_mean, theirs[1].moving_mean)


def test_the_own_images_benchmark_measures_each_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The split has the given proportions. Each method that needs no other package is measured on all test images."""
    own_images = importlib.import_module("own_images")
    monkeypatch.setattr(own_images, "SIDE", 32)
    rng = np.random.default_rng(0)
    for split, each in (("train", 20), ("test", 3)):
        for name in ("cats", "dogs", "hens"):
            (tmp_path / "sign" / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "sign" / split / name / f"{i}.png")
    own_images._cut(tmp_path / "sign", tmp_path / "cut", [1, 0.2, 0.05])
    assert sorted(len(list(f.iterdir())) for f in (tmp_path / "cut" / "train").iterdir()) == [1, 4, 20]
    assert all(len(list(f.iterdir())) == 3 for f in (tmp_path / "cut" / "test").iterdir())
    task = {"folder": str(tmp_path / "sign"), "seed": 0, "imbalanced": True, "runs": str(tmp_path / "runs")}
    rows = [own_images.child_cnnlab({**task, "side": "lenet-bn"})]
    rows += [own_images.child_torchvision({**task, "cpu_seconds": 0.01})]
    for row in rows:
        assert {"accuracy", "balanced_accuracy", "cpu_seconds", "epochs"} <= row.keys()
        assert row["accuracy"] * 9 == pytest.approx(round(row["accuracy"] * 9))  # there are nine test images
        assert row["balanced_accuracy"] == pytest.approx(row["accuracy"])
