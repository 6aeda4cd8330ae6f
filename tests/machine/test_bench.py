"""`cnnlab bench`: counts and arithmetic against figures computed by hand. No test depends on the machine's speed."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cnnlab.cli.bench import bench_text
from cnnlab.data import named
from cnnlab.data.imageset import ImageSet
from cnnlab.device import memory as host_memory
from cnnlab.device.hardware import available_cores
from cnnlab.device.memory import PeakMemory
from cnnlab.io.errors import CnnlabError
from cnnlab.machine import bench as module
from cnnlab.machine.bench import BenchResult, bench
from cnnlab.machine.peak import products
from cnnlab.models import build_model
from cnnlab.recipe import Recipe
from cnnlab.recipes import RECIPES
from cnnlab.training.autotune import fastest_plan
from cnnlab.training.folders import result_folder
from cnnlab.training.plan import Plan, Workload
from conftest import Command, one_line_error

CPU = torch.device("cpu")
# Multiply-adds of LeNet for one image of 28 pixels: two convolutions, three linear layers.
LENET = 6 * 25 * 28 * 28 + 16 * 6 * 25 * 10 * 10 + 400 * 120 + 120 * 84 + 84 * 10
THREADS = min(2, available_cores())


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A fake machine: 10 GFLOP/s at the peak, steps of 0.01 s. Return the list of requested numbers of steps."""
    steps: list[int] = []

    def timed(recipe: Recipe, plan: Plan, images: ImageSet, device: torch.device, count: int) -> Any:
        steps.append(count)
        return 1000, 2.0, 1.6, 0.7  # images; seconds in all, of compute, of the first step

    def peak(device: torch.device, precision: torch.dtype, threads: int) -> dict[str, Any]:
        return {"flops_per_second": 1e10, "by": "conv", "size": 1024, "threads": threads, "mm": 5e9, "conv": 1e10}

    monkeypatch.setattr(module, "_timed", timed)
    monkeypatch.setattr(module, "peak", peak)
    monkeypatch.setattr(module, "fastest_plan", lambda *a: (Plan(threads=1, why="as the test says"), 0.01))
    monkeypatch.setattr(module, "PeakMemory", lambda device: SimpleNamespace(bytes=lambda: 2**30))
    monkeypatch.setattr(module, "COUNT", 100)
    return steps


def test_figures_are_computed_from_the_measured_steps(fixed: list[int], tmp_path: Path) -> None:
    result = bench(["lenet"], precision="float32", accuracy=False, seconds=0.5, data_dir=tmp_path, batch_size=10)
    (row,) = result.rows
    assert fixed == [50]
    assert (row["images_per_second"], row["examples_per_second"]) == (500, 625)
    assert row["flops_per_image"] == 6 * LENET
    assert row["fraction_of_peak"] == pytest.approx(6 * LENET * 500 / 1e10)
    assert (row["batch_size"], row["image_size"], row["chosen"]) == (10, 28, "as the test says")
    assert result.images == "random"  # nothing was downloaded
    assert list(tmp_path.iterdir()) == []
    text = bench_text(result)
    assert f"{6 * LENET * 500 / 1e10:.1%}" in text
    assert "1,024 MiB" in text
    assert "peak, float32: 10 GFLOP/s (1x1 convolution, 1024 x 1024" in text


def test_default_networks_and_sizes_match_the_chapter(
    fixed: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "COUNT", 300)
    monkeypatch.setattr(module, "operations", lambda build, shape: 1e6)
    monkeypatch.setattr(module, "has_bfloat16", lambda device: True)
    result = bench(accuracy=False, seconds=0.5, data_dir=tmp_path)
    assert {(r["model"], r["image_size"], r["batch_size"]) for r in result.rows} == {
        ("lenet", 28, 256), ("alexnet", 224, 128), ("vgg11-quarter", 224, 128), ("nin", 224, 128),
        ("lenet-bn-scratch", 28, 256), ("lenet-bn", 28, 256), ("resnet18-manual", 96, 256), ("googlenet", 96, 128),
        ("densenet", 96, 256),
    }  # fmt: skip
    assert [r["precision"] for r in result.rows] == ["float32", "bfloat16"] * 9
    assert result.peaks.keys() == {"float32", "bfloat16"}
    monkeypatch.setattr(module, "has_bfloat16", lambda device: False)
    (other,) = bench(["resnet50"], accuracy=False, data_dir=tmp_path).rows
    assert (other["image_size"], other["batch_size"], other["precision"]) == (224, 128, "float32")
    result.save(tmp_path)
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_peaks_of_an_earlier_call_are_not_measured_again(fixed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    known = bench(["lenet"], batch_size=20, device="cpu", precision="float32", accuracy=False).peaks

    def measure_again(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(module, "peak", measure_again)
    result = bench(["lenet"], batch_size=20, device="cpu", precision="float32", accuracy=False, peaks=known)
    assert result.peaks == known
    assert result.rows[0]["fraction_of_peak"] > 0
    with pytest.raises(AssertionError):  # they do not hold for another precision
        bench(["lenet"], batch_size=20, device="cpu", precision="bfloat16", accuracy=False, peaks=known)


def test_a_busy_moment_at_the_start_does_not_lower_the_peak(
    fixed: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    speeds = iter([1e9, 4e9])

    def peak(device: torch.device, precision: torch.dtype, threads: int) -> dict[str, Any]:
        return {"flops_per_second": next(speeds), "by": "mm", "size": 512, "threads": threads}

    monkeypatch.setattr(module, "peak", peak)
    result = bench(["lenet"], precision="float32", accuracy=False, threads=1, data_dir=tmp_path, batch_size=10)
    assert result.peaks["float32"]["flops_per_second"] == 4e9
    assert result.rows[0]["fraction_of_peak"] == pytest.approx(6 * LENET * 500 / 4e9)


def test_out_of_memory_is_reported_in_its_row(
    fixed: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "fastest_plan", lambda *a: (Plan(threads=1), math.inf))
    result = bench(["lenet"], precision="float32", accuracy=False, data_dir=tmp_path / "data", batch_size=99)
    assert re.search(r"memory.*\b99\b", result.rows[0]["failed"])
    assert result.rows[0]["failed"] in bench_text(result)
    result.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["bench.json"]  # there is nothing to draw


def test_timed_steps_are_training_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 16 from 40 images, over three epochs. The first two of the seven steps are warm-up."""
    clock = iter([10.0, 10.5, 100.0, 107.5])
    calls: list[int] = []
    real = module.train_step

    def step(model: torch.nn.Module, optimizer: Any, x: torch.Tensor, y: torch.Tensor, **more: Any) -> Any:
        before = [p.detach().clone() for p in model.parameters()]
        answer = real(model, optimizer, x, y, **more)
        assert any((b != p).any() for b, p in zip(before, model.parameters(), strict=True))
        assert x.shape[1:] == (1, 28, 28)
        assert x.is_contiguous(memory_format=torch.channels_last)
        calls.append(len(x))
        return answer

    monkeypatch.setattr(module, "train_step", step)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(module, "COUNT", 40)
    images = module._images(Path("nowhere"), lambda *a: None)[1]
    assert (images.images.shape, images.images.dtype) == ((40, 1, 28, 28), torch.uint8)
    recipe = module._recipe("lenet", 0, 16)
    plan = Plan(threads=1, memory_format=torch.channels_last)
    seen, wall, compute, first = module._timed(recipe, plan, images, CPU, 5)
    assert calls == [16, 16, 8, 16, 16, 8, 16]
    assert (seen, wall, first) == (64, 7.5, 0.5)
    assert compute > 0


def test_fastest_plan_is_always_measured_and_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    from cnnlab.training import autotune

    seconds = {torch.contiguous_format: 2.0, torch.channels_last: 1.0}
    monkeypatch.setattr(autotune, "time_step", lambda work, plan, *a, **k: seconds[plan.memory_format])
    monkeypatch.setattr(autotune._Cache, "write", lambda *a: pytest.fail("cached"))
    recipe = RECIPES["manual/lenet"].changed(epochs=1, batch_size=8)
    work = Workload(recipe, lambda: build_model("lenet"), (1, 28, 28), 10, CPU, threads=1)
    plan, step = fastest_plan(work)
    assert (plan.memory_format, step) == (torch.channels_last, 1.0)
    assert "float32, contiguous: 4" in plan.why
    seconds[torch.contiguous_format] = 1.01  # not clearly slower, so the first plan stays
    plan, step = fastest_plan(work)
    assert (plan.memory_format, step) == (torch.contiguous_format, 1.01)
    plan, _ = fastest_plan(work, seconds=-1.0)
    assert "1 more" in plan.why


def test_the_command_prints_and_saves_its_figures(
    cnnlab: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cnnlab.machine.peak.SIZES", (64,))
    options = (
        "--seconds",
        0.05,
        "--batch-size",
        16,
        "--threads",
        THREADS,
        "--no-accuracy",
        "--data-dir",
        tmp_path / "d",
    )
    answer = cnnlab("bench", "lenet", "lenet-bn", *options, "--precision", "float32", "--out", "here", "--json")
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert result == json.loads(Path("here/bench.json").read_text())
    assert Path("here/bench.png").read_bytes().startswith(b"\x89PNG")
    assert [row["model"] for row in result["rows"]] == ["lenet", "lenet-bn"]
    for row in result["rows"]:
        assert row["images"] >= 2 * 16
        assert 0 < row["compute_seconds"] < row["seconds"]
        assert row["images_per_second"] == pytest.approx(row["images"] / row["seconds"])
        assert row["fraction_of_peak"] > 0
        assert row["threads"] == THREADS
        assert row["peak_memory_bytes"] is None or row["peak_memory_bytes"] > 2**20
    best = result["peaks"]["float32"]
    assert best["flops_per_second"] == max(best["mm"], best["conv"]) > 0
    assert torch.__version__.startswith(result["environment"]["versions"]["torch"])
    assert result["environment"]["date"]
    assert (result["to_accuracy"], result["left_out"]) == ([], [])
    assert set(result["definitions"]) >= {"fraction_of_peak", "peak_memory_bytes", "peaks"}
    assert "here/bench.json" in one_line_error(cnnlab("bench", "lenet", *options, "--out", "here"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("lenett",), r"'lenett'.*lenet\b"),
        (("lenet", "--image-size", 8), "12x12"),
        (("lenet", "--image-size", -1), "image_size=-1"),
        (("lenet", "--batch-size", 1), r"batch_size=1\b.*\b2\b.*\b60000"),
        (("lenet", "--batch-size", 60_001), "batch_size=60001"),
        (("lenet", "--precision", "float8"), "'float8'.*auto, float32, bfloat16"),
        (("lenet", "--precision", "float16"), "'float16'.*auto, float32, bfloat16"),
        (("lenet", "--seconds", 0), "seconds=0"),
        (("lenet", "--seconds", "nan"), "seconds=nan"),
        (("lenet", "--threads", 0), "threads=0"),
        (("lenet", "--device", "tpu"), "'tpu'"),
        (("lenet", "--out", "a-file/inside"), "a-file"),
    ],
)
def test_invalid_input_is_one_line_and_creates_nothing(cnnlab: Command, args: tuple[object, ...], message: str) -> None:
    Path("a-file").touch()
    assert re.search(message, one_line_error(cnnlab("bench", *args)))
    assert not list(Path().glob("runs/*"))


def test_a_result_folder_is_new_or_free(tmp_path: Path) -> None:
    with result_folder("bench") as first:
        (first / "bench.json").touch()
    with result_folder("bench") as second:
        pass
    assert (first, second) == (Path("runs/bench-001"), Path("runs/bench-002"))
    assert first.exists()
    assert not second.exists()  # removed, since it stayed empty
    own = tmp_path / "own"
    own.mkdir()
    with result_folder("bench", own):
        pass
    assert own.exists()  # kept: the user made it
    with pytest.raises(CnnlabError, match=f"{first}.*--out"), result_folder("bench", first):
        pass


def test_time_to_accuracy_is_measured(quick: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(module.RECIPES, "digits", quick)
    monkeypatch.setattr(module, "TO_ACCURACY", ("digits", "fashion-mnist"))
    rows, left_out = module._to_accuracy(CPU, THREADS, tmp_path / "data", lambda *a: None)
    (row,) = rows
    assert (row["split"], row["epochs"], row["data"]) == ("validation", 2, "digits")
    assert 0 < row["accuracy"] <= 1
    assert 0 < row["train_seconds"] < row["seconds"]
    assert re.match(f"fashion-mnist: .*{tmp_path / 'data'}", left_out[0])
    assert not Path("runs").exists()  # the run is not kept
    result = BenchResult(
        {"device_name": "x", "cores": 1, "memory_gib": None, "versions": {"torch": "2"}},
        "random",
        {},
        [],
        rows,
        left_out,
    )
    assert f"validation acc {row['accuracy']:.4f} after {row['seconds']:.1f} s" in bench_text(result)
    assert "skipped: fashion-mnist" in bench_text(result)


def test_fashion_mnist_needs_all_four_files(tmp_path: Path) -> None:
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for kind in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        assert not named.is_there("fashion-mnist", tmp_path)
        (folder / f"{kind}-ubyte.gz").touch()
    assert named.is_there("fashion-mnist", tmp_path)


@pytest.mark.parametrize("n", [64, 512])
def test_both_products_of_the_peak_are_equal(n: int) -> None:
    both = products(n, CPU, torch.float32)
    product, image = both["mm"](), both["conv"]()
    assert image.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(image.permute(0, 2, 3, 1).reshape(n, n), product, rtol=1e-5, atol=1e-5)


def test_peak_memory_is_measured() -> None:
    held = 400 * 2**20  # much more than anything else that may change
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not set its mark back")
    memory = PeakMemory(CPU)
    before = memory.bytes()
    torch.ones(held, dtype=torch.uint8)  # freed at once
    after = memory.bytes()
    assert before is not None
    assert after is not None
    assert after - before > 0.9 * held
    again = PeakMemory(CPU).bytes()
    assert again is not None
    assert again < after - 0.9 * held


def test_peak_memory_is_none_if_the_system_does_not_report_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise OSError("read-only")

    monkeypatch.setattr(Path, "write_text", refuse)
    marks = iter([100, 100, 150, None])
    monkeypatch.setattr(host_memory, "_peak_resident", lambda: next(marks))
    memory = PeakMemory(CPU)
    assert memory.bytes() is None  # an earlier peak was as high
    assert memory.bytes() == 150
    assert memory.bytes() is None
