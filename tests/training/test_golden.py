"""The loss curve of a short training is a reviewed file, which every optimized variant must reproduce.

`python tests/training/test_golden.py` rewrites it, computed in the plainest way: float32, contiguous, one thread, no
fused update, each filter updated alone.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import interrupted
from torch import nn

from cnnlab import RECIPES, Recipe, Run, resume, train
from cnnlab.data import feeder
from cnnlab.device import determinism
from cnnlab.training import checkpoint
from cnnlab.training import train as training
from cnnlab.training.optim import make_optimizer
from cnnlab.training.plan import has_compiler
from cnnlab.training.step import Compiled, train_step

FILE = Path(__file__).parents[1] / "golden" / "loss_curve.json"
# For rounding alone, on any machine. Measured: 2e-6 on an AMD EPYC.
EXACT = 1e-4
# The bias of a convolution before batch norm has a gradient of rounding errors only, which AdamW turns into steps of
# full length. They do not affect the training, but the running mean lags behind them. Measured: 2e-3.
BATCH_NORM_DRIFT = 2e-2
# The factors of each product have three digits. Measured: 2e-3. Muon also orthogonalizes filters with them: 2e-2.
BFLOAT16 = {"sgd": 2e-2, "muon": 5e-2}

SHORT = replace(RECIPES["digits"], name="short", epochs=3)
CURVES = {
    "sgd": SHORT,
    "adamw": replace(SHORT, optimizer="adamw", learning_rate=0.003, nesterov=False),
    "muon": replace(SHORT, optimizer="muon", learning_rate=0.1, momentum=0.6, nesterov=False),
}


def train_curve(recipe: Recipe, **changes: Any) -> Run:
    return train(replace(recipe, **changes), threads=1, device="cpu", progress="none").run


def assert_follows_curve(run: Run, name: str, tolerance: float = EXACT) -> None:
    golden = json.loads(FILE.read_text())[name]
    later = tolerance if name == "sgd" else max(tolerance, BATCH_NORM_DRIFT)
    assert [row["loss"] for row in run.metrics()] == pytest.approx(golden["loss"], rel=tolerance)
    assert [row["val_loss"] for row in run.metrics()] == pytest.approx(golden["val_loss"], rel=later)


def plain_optimizer(model: nn.Module, recipe: Recipe, *precision: torch.dtype) -> torch.optim.Optimizer:
    """Return an optimizer without fused updates. Each parameter has its own group, so it is updated alone."""
    optimizer = make_optimizer(model, recipe, *precision)
    optimizer.param_groups[:] = [{**g, "params": [p]} for g in optimizer.param_groups for p in g["params"]]
    for group in optimizer.param_groups:
        if "fused" in group:
            group.update(fused=False, foreach=False)
    return optimizer


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("layout", ["auto", "channels_last"])
def test_optimizers_follow_the_golden_curve(name: str, layout: str) -> None:
    assert_follows_curve(train_curve(CURVES[name], memory_format=layout), name)


@pytest.mark.parametrize("name", CURVES)
def test_plain_computation_follows_the_golden_curve(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "make_optimizer", plain_optimizer)
    assert_follows_curve(train_curve(CURVES[name], memory_format="contiguous", compile="off"), name)


def test_memory_management_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = train_curve(SHORT)
    monkeypatch.setattr(determinism, "keep_freed_memory", nullcontext)
    given_back = train_curve(SHORT)
    # From here on the set stays on the host.
    monkeypatch.setattr(feeder, "fits_on_device", lambda images, device: False)
    from_host = train_curve(SHORT)
    assert_follows_curve(from_host, "sgd")
    for run in (given_back, from_host):
        assert (run.path / "last.safetensors").read_bytes() == (usual.path / "last.safetensors").read_bytes()


@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16_stays_near_the_golden_curve(name: str) -> None:
    run = train_curve(CURVES[name], precision="bfloat16")
    assert_follows_curve(run, name, BFLOAT16[name])
    assert run.metrics()[-1]["loss"] != json.loads(FILE.read_text())[name]["loss"][-1]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_network_and_loss_are_compiled_together(precision: torch.dtype) -> None:
    """The values equal those of the plain step. There is one graph, which the next seed's network reuses."""
    if not has_compiler(torch.device("cpu")):
        pytest.skip("there is no C++ compiler on this system")

    def step(how: type[Compiled] | None) -> list[float]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        network = how(model, "default") if how else model
        found = []
        for _ in range(4):
            x, y = torch.rand(8, 1, 4, 4), torch.randint(10, (8,))
            loss, correct = train_step(network, optimizer, x, y, 0.1, precision)
            assert torch.equal(network(x), model(x))
            found += [float(loss), float(correct)]
        return found

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    expected = step(None)
    for _ in range(2):
        assert step(Compiled) == pytest.approx(expected, rel=1e-5 if precision == torch.float32 else 1e-2)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_outputs_of_torchs_own_cuda_graphs_are_copied() -> None:
    for mode, copied in (("reduce-overhead", True), ("default", False)):
        network = Compiled(torch.nn.Linear(4, 2), mode)
        answer = torch.tensor(1.0), torch.tensor(2)
        network._forward_loss = lambda *_, answer=answer: answer
        found = network.forward_loss(torch.rand(3, 4), torch.zeros(3), 0.0, torch.float32)
        assert [float(f) for f in found] == [1, 2]
        assert all((f is a) is not copied for f, a in zip(found, answer, strict=True))


@pytest.mark.slow
def test_compiled_run_follows_the_golden_curve_and_resumes_to_the_same_bits() -> None:
    if not has_compiler(torch.device("cpu")):
        pytest.skip("there is no C++ compiler on this system")
    whole = train_curve(SHORT, compile="default")
    assert json.loads((whole.path / "environment.json").read_text())["sessions"][0]["compile"] == "default"
    assert_follows_curve(whole, "sgd")
    # The first save is before the first epoch.
    stopped = interrupted(whole.recipe, 3, "stopped", checkpoint, "save_checkpoint", device="cpu")
    path = resume(stopped, threads=1).run.path
    assert (whole.path / "last.safetensors").read_bytes() == (path / "last.safetensors").read_bytes()


def write_golden_file() -> None:
    training.make_optimizer = plain_optimizer  # type: ignore[attr-defined]
    found = {}
    for name, recipe in CURVES.items():
        with tempfile.TemporaryDirectory() as folder:
            plain = replace(recipe, memory_format="contiguous", compile="off")
            rows = train(plain, runs_dir=folder, threads=1, device="cpu", progress="none").run.metrics()
        found[name] = {key: [row[key] for row in rows] for key in ("loss", "val_loss")}
    FILE.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    write_golden_file()
