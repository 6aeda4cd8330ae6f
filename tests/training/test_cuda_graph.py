"""Recorded steps. Without a CUDA device, a fake graph records which tensors a replayed step reads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cnnlab
from cnnlab.io.errors import CnnlabError
from cnnlab.models import build_model
from cnnlab.recipe import COMPILE, Recipe
from cnnlab.recipes import find_recipe
from cnnlab.training import cuda_graph
from cnnlab.training.cuda_graph import RecordedStep, make_step, warmup_steps
from cnnlab.training.optim import learning_rate, make_optimizer
from cnnlab.training.plan import Plan
from cnnlab.training.step import train_step

CPU = torch.device("cpu")


class Stream:
    entered: list[Stream] = []  # noqa: RUF012

    def __init__(self, device: Any = None) -> None:
        pass

    def wait_stream(self, other: Stream) -> None:
        pass


class Memory:
    """The GPU's memory, in any unit. taken: allocated at the peak."""

    taken, free, reserved = 5, 20, 5
    emptied = 0


class Graph:
    """A fake torch.cuda.CUDAGraph: steps inside it are not run until `replay` runs them."""

    current: Graph | None = None
    created: list[Graph] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.replayed, self.failed = 0, False
        Graph.created.append(self)

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        assert capture_error_mode == "thread_local"  # another thread may be writing a checkpoint
        self.pool, self.stream = pool, Stream.entered[-1]
        Graph.current = self

    def capture_end(self) -> None:
        Graph.current = None

    def replay(self) -> None:
        self.replayed += 1
        for call in self.calls:
            call()


def recordable(model: Any, optimizer: Any, x: Tensor, y: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
    """Run `train_step`. Inside a graph, record it instead, with the tensors that it would read and write."""
    if Graph.current is None:
        return train_step(model, optimizer, x, y, *how)
    answer = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    given = getattr(optimizer, "device_scalars", None)
    rates = [group["lr"] for group in optimizer.param_groups]

    def play() -> None:
        if given is not None:
            optimizer.device_scalars = given
        before = [group["lr"] for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for mine, now in zip(answer, train_step(model, optimizer, x, y, *how), strict=True):
            mine.copy_(now)
        for group, rate in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = rate
        if given is not None:
            optimizer.device_scalars = None

    Graph.current.calls.append(play)
    return answer


@pytest.fixture(autouse=True)
def stand_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("gpu"):
        return

    @contextlib.contextmanager
    def inside(stream: Stream) -> Iterator[None]:
        Stream.entered.append(stream)
        yield

    def emptied() -> None:
        Memory.emptied += 1

    Graph.created, Stream.entered = [], []
    Memory.taken, Memory.free, Memory.reserved, Memory.emptied = 5, 20, 5, 0
    for name, stand_in in {
        "CUDAGraph": Graph, "Stream": Stream, "current_stream": Stream, "stream": inside, "empty_cache": emptied,
        "synchronize": lambda device: None, "graph_pool_handle": object, "get_rng_state": lambda device: torch.ones(1),
        "max_memory_allocated": lambda device: Memory.taken, "memory_reserved": lambda device: Memory.reserved,
        "mem_get_info": lambda device: (Memory.free, 100), "reset_peak_memory_stats": lambda device: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda device, pool: None, raising=False)


SCHEDULED = {
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "clip_norm": 1.0},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    "muon": {"optimizer": "muon", "momentum": 0.6, "weight_decay": 0.1, "other_learning_rate": 0.01},
}


def train_steps(
    how: str, replayed: bool, sizes: list[int], rate: float = 0.05, frozen_from: int = 10**9
) -> tuple[list[float], dict[str, Tensor], Any]:
    recipe = Recipe(model="airbench-small", schedule="one-cycle", learning_rate=rate, **SCHEDULED[how])
    torch.manual_seed(0)
    model = build_model("airbench-small", num_classes=10, in_channels=1, image_size=28).train()
    optimizer = make_optimizer(model, recipe)
    step: Any = RecordedStep(recordable, CPU) if replayed else train_step
    losses = []
    for number, size in enumerate(sizes):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, number, len(sizes))
        if number == frozen_from:
            step._send = lambda values: step._scalars
        x, y = torch.rand(size, 1, 28, 28), torch.randint(10, (size,))
        loss, correct = step(model, optimizer, x, y, 0.1)
        losses.append(loss)
        assert 0 <= int(correct) <= size
    rates = [group["lr"] for group in optimizer.param_groups]
    assert all(isinstance(r, float) for r in rates)  # a checkpoint stores floats
    assert "capturable" not in optimizer.param_groups[0] or not optimizer.param_groups[0]["capturable"]
    # Read the losses only now: a replayed step must not overwrite an earlier loss.
    return [float(loss) for loss in losses], model.state_dict(), step


@pytest.mark.parametrize("how", SCHEDULED)
def test_replayed_steps_match_normal_ones(how: str) -> None:
    sizes = [8, 8, 8, 5, 8, 8, 8, 5, 8, 8, 8, 5]
    losses, weights, _ = train_steps(how, False, sizes)
    again, replayed, _ = train_steps(how, True, sizes)
    # Six of nine steps; the smaller batch came three times and was not recorded.
    assert [g.replayed for g in Graph.created] == [6]
    # On the device these numbers are float32, so results differ in the last bits.
    torch.testing.assert_close(torch.tensor(again), torch.tensor(losses), rtol=1e-3, atol=1e-3)
    for name in weights:
        torch.testing.assert_close(replayed[name], weights[name], rtol=1e-2, atol=1e-3, msg=name)
    assert len({id(g.stream) for g in Graph.created} | {id(g.pool) for g in Graph.created}) == 2
    stale, _, _ = train_steps(how, True, sizes, frozen_from=5)
    assert max(abs(a - b) for a, b in zip(losses, stale, strict=True)) > 5e-3  # frozen numbers would be noticed


def test_recordings_share_a_pool_and_the_oldest_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "_MAX_RECORDINGS", 2)
    *_, step = train_steps("sgd", True, [8] * 5 + [6] * 5 + [4] * 5 + [8] * 3 + [4])
    assert [g.replayed for g in Graph.created] == [2, 2, 3]  # the later batches of eight ran normally
    # Otherwise one recording could not reuse the memory of another.
    assert len({id(g.stream) for g in Graph.created}) == len({id(g.pool) for g in Graph.created}) == 1
    assert sum(isinstance(kind, cuda_graph._Recording) for kind in step._kinds.values()) == 2


def run_unrecordable(step_function: Any, sizes: list[int]) -> tuple[list[str], RecordedStep]:
    """Run steps, not all of them recordable. Check that each updates the weights. Return the notes and the step."""
    notes: list[str] = []
    model = build_model("lenet", num_classes=10, in_channels=1, image_size=28)
    optimizer = make_optimizer(model, Recipe(model="lenet"))
    step = RecordedStep(step_function, CPU, notes.append)
    for size in sizes:
        before = [p.detach().clone() for p in model.parameters()]
        step(model, optimizer, torch.rand(size, 1, 28, 28), torch.randint(10, (size,)))
        assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return notes, step


def test_unrecordable_step_runs_normally_with_one_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(model: Any, optimizer: Any, x: Tensor, *batch: Any) -> Any:
        if Graph.current is not None and len(x) == 3:
            Graph.current.failed = True
            raise RuntimeError("operation not permitted when stream is capturing")
        return recordable(model, optimizer, x, *batch)

    def failing_too(self: Graph) -> None:
        Graph.current = None
        if self.failed:
            raise RuntimeError("operation failed due to a previous error during capture")

    fresh: list[Tensor] = []
    ended: list[Any] = []
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda device, pool: ended.append(pool), raising=False)
    monkeypatch.setattr(cuda_graph, "_replace_generator", lambda device, state: fresh.append(state))
    monkeypatch.setattr(Graph, "capture_end", failing_too)
    (line,), step = run_unrecordable(waits, [4] * 6 + [3] * 5 + [4])
    # The earlier recording is dropped: its random numbers would differ from the saved state.
    assert [g.replayed for g in Graph.created] == [3, 0]
    assert not any(isinstance(kind, cuda_graph._Recording) for kind in step._kinds.values())
    assert ended == [Graph.created[1].pool]
    assert "operation not permitted" in line  # the first error, not those that it caused
    assert len(fresh) == 1  # PyTorch 2.11's old generator would still believe it is being recorded


class Rebinding(torch.nn.Linear):
    """A layer that replaces a buffer in each forward pass, as some batch norms do."""

    def __init__(self) -> None:
        super().__init__(4, 2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return super().forward(x)


def test_network_that_replaces_its_buffers_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "_replace_generator", lambda device, state: None)

    def captured(model: Any, *batch: Any) -> tuple[Tensor, Tensor]:
        if Graph.current is None:
            return train_step(model, *batch)
        model(batch[1])
        return torch.zeros(()), torch.zeros(())

    def failing(model: Any, *batch: Any) -> tuple[Tensor, Tensor]:
        answer = captured(model, *batch)
        if Graph.current is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        return answer

    for how, why in ((captured, "buffer seen"), (failing, "not permitted")):
        notes: list[str] = []
        model = Rebinding()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = RecordedStep(how, CPU, notes.append)
        for _ in range(6):
            step(model, optimizer, torch.rand(3, 4), torch.randint(2, (3,)))
        (line,) = notes
        assert why in line
        assert float(model.seen) == 6  # the changes by the recording are undone


def test_step_that_needs_much_memory_is_not_recorded() -> None:
    Memory.taken, Memory.free, Memory.reserved = 11, 10, 15
    (line,), _ = run_unrecordable(recordable, [4] * 6)
    assert "memory" in line
    assert not Graph.created
    Memory.free, Memory.reserved = 5, 25  # enough, once cached memory is returned
    assert run_unrecordable(recordable, [4] * 6)[0] == []
    assert len(Graph.created) == Memory.emptied == 1


def test_which_plans_are_recorded() -> None:
    cuda = torch.device("cuda")
    recorded = [m for m in COMPILE if _is_recorded(Plan(threads=1, compile=m), cuda)]
    assert recorded == ["record", "default", "max-autotune-no-cudagraphs"]
    plan = Plan(threads=1, compile="record")
    assert not _is_recorded(plan, CPU)
    assert not _is_recorded(replace(plan, precision=torch.float16), cuda)
    assert warmup_steps(plan, cuda) == cuda_graph.WARM_UP + 1
    assert warmup_steps(plan, CPU) == 1


def _is_recorded(plan: Plan, device: torch.device) -> bool:
    step = make_step(train_step, plan, device)
    assert isinstance(step, RecordedStep) or step is train_step
    return isinstance(step, RecordedStep)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_record_without_cuda_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CnnlabError, match="compile=record.*CUDA.*compile=off"):
        cnnlab.train(Recipe(model="lenet", compile="record", image_size=28), runs_dir=tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("recipe", ["manual/lenet-bn", "speed/fashion-93", "fast/vgg11", "fast/alexnet"])
def test_recorded_run_on_cuda_is_reproducible_and_resumable(recipe: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from cnnlab.io.errors import TrainingInterrupted
    from cnnlab.training import loop as training

    changes = [
        "data=digits",
        "eval_split=validation",
        "val_fraction=0.2",
        "epochs=3",
        "batch_size=128",
        "image_size=32",
    ]
    settings = find_recipe(recipe).with_settings(changes)
    weights, losses = {}, {}
    for name in ("record", "again", "off"):
        how = settings.changed(compile="off" if name == "off" else "record")
        run = cnnlab.train(how, runs_dir=tmp_path, name=name, device="cuda").run
        weights[name] = load_file(run.path / "last.safetensors")
        losses[name] = [row["loss"] for row in run.metrics()]
    real, calls = training.evaluate, []

    def stopping(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "evaluate", stopping)
        with pytest.raises(TrainingInterrupted):
            cnnlab.train(settings.changed(compile="record"), runs_dir=tmp_path, name="stopped", device="cuda")
    resumed = cnnlab.resume(tmp_path / "stopped")
    weights["stopped"] = load_file(resumed.run.path / "last.safetensors")
    for name, value in weights["record"].items():
        assert torch.equal(value, weights["again"][name]), name
        assert torch.equal(value, weights["stopped"][name]), name
    # Recorded Muon reads its rates in float32. A few dozen large steps amplify the last bits, so compare the losses.
    assert losses["record"][0] == pytest.approx(losses["off"][0], rel=2e-2)
    assert recipe.startswith("speed/") or losses["record"] == pytest.approx(losses["off"], rel=1e-4)
