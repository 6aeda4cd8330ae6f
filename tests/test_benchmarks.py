"""The benchmark scripts run in their smallest form, on the CPU, with results in a temporary folder."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
# Script, and what its result must have.
TINY = [
    ("vs_d2l.py", ("peer", "n", "epochs", "networks")),
    ("vs_reference.py", ("n", "left_out", "networks")),
    ("drop_in.py", ("peer", "n", "networks")),
    ("fashion_speed.py", ("n", "split_seed", "recipes")),
    ("cifar_speed.py", ("n", "split_seed", "recipes")),
    ("gpu_suite.py", ("tiny", "parts")),
    ("saving.py", ("n", "file_system", "networks")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "keys"), TINY)
def test_runs_in_small_and_writes_its_result(
    script: str, keys: tuple[str, ...], fashion_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("psutil")
    published = sorted((BENCHMARKS / "results").iterdir())
    out = tmp_path / "results"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--tiny", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "CNNLAB_DATA": str(fashion_folder), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if done.stdout.startswith("skipped: "):
        pytest.skip(done.stdout.strip())
    (file,) = out.glob("*.json")
    result = json.loads(file.read_text())
    assert {"benchmark", "command", "environment", *keys} <= result.keys()
    assert sorted((BENCHMARKS / "results").iterdir()) == published


def test_by_default_a_result_goes_where_git_does_not_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _common
    import _speed

    out = _speed.parser("", []).parse_args([]).out
    assert out == _common.OUT
    assert not out.is_relative_to(_common.PUBLISHED)
    assert "/build/" in (BENCHMARKS.parent / ".gitignore").read_text().splitlines()
    for script in BENCHMARKS.glob("*.py"):  # none writes anywhere else
        text = script.read_text()
        assert text.count("write_result(") - text.count("def write_result(") <= text.count("args.out)"), script.name


def test_the_page_of_results_finds_what_it_reads_in_a_result_of_vs_d2l(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
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


def test_networks_kept_from_an_earlier_result_are_marked_with_its_day_and_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
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
def test_who_is_ahead_is_told_from_the_published_scripts_table(
    acc: float, seconds: float, ahead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_suite import compared, peer_runs

    theirs = peer_runs(PEERS_TABLE)
    assert theirs == [{"acc": 0.941, "seconds": 2.6}, {"acc": 0.94, "seconds": 2.5}]  # without its warm-up
    ours = {"per_seed": [{}] * 4, "final_acc": {"mean": acc, "std": 0.001}, "race_seconds": {"mean": seconds}}
    found = compared(ours, theirs)
    assert found["who is ahead"] == ahead
    assert found["standard error of the difference"] == pytest.approx((0.0005**2 + 0.0005**2) ** 0.5, rel=1e-6)
    assert "not known" in compared("no time was left", theirs)["who is ahead"]


def test_a_profile_tells_what_a_step_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_suite import kernels

    found = kernels(argparse.Namespace(device="cpu"), "lenet-bn", 28, 64)
    calls = {kernel["name"]: kernel["calls_per_step"] for kernel in found["kernels"]}
    assert calls["aten::convolution_backward"] == 2  # as many as the network has convolutions
    assert calls["aten::native_batch_norm"] == 4
    times = [kernel["us_per_step"] for kernel in found["kernels"]]
    assert times == sorted(times, reverse=True)
    assert 0 < sum(times) <= found["us_per_step_of_all"] * 1.001


def test_a_part_that_is_late_ends_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_suite import run_for

    assert run_for(60, ["sh", "-c", "echo done; exit 3"]).returncode == 3
    with pytest.raises(subprocess.TimeoutExpired) as late:
        run_for(1, ["sh", "-c", "sleep 60 & echo $!; wait"])
    child = int(late.value.output)
    deadline = time.monotonic() + 10
    while _lives(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lives(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_the_peers_network_is_the_manuals_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
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
