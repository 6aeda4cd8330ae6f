"""Several processes train one network: the same batches and evaluation, and nearly the same weights, as one process."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from comparing import assert_same_run, figures
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from worlds import KILLED, run_processes

from cnnlab import Recipe, open_run, resume, train
from cnnlab.data.augment import Augmentation
from cnnlab.data.imageset import ImageSet
from cnnlab.data.loader import Loader, Preprocessing
from cnnlab.device.world import World, fresh_store, joined_world
from cnnlab.io.errors import CnnlabError, ReportedElsewhere
from cnnlab.training import autotune, loop, runs
from cnnlab.training.checkpoint import read_weights
from cnnlab.training.evaluate import evaluate
from cnnlab.training.replica import Replica, SyncedBatchNorm, can_sync
from cnnlab.training.session import Session
from cnnlab.training.step import train_step
from conftest import Command

CPU = torch.device("cpu")
COPYING = Augmentation(shift=1, flip=True, alternating_flip=True, vertical_flip=True, cutout=2, cutmix=0.4)
# Vectorised code may round the last images of a part differently from those of a whole batch.
ROUNDING = Augmentation(rotation=20, zoom=0.2, crop_scale=0.5, brightness=0.2, contrast=0.2, saturation=0.2, mixup=0.4)
SMALL = Recipe(
    data="digits", model="lenet", image_size=16, epochs=2, batch_size=100, limit=330, learning_rate=0.05, momentum=0.9
)


def image_set(count: int, channels: int = 1) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, 6, 6), dtype=torch.uint8, generator=generator)
    weights = torch.rand(count, generator=generator) + 0.5
    return ImageSet(images, torch.arange(count) % 3, [str(i) for i in range(count)], ["a", "b", "c"], weights=weights)


def make_loader(images: ImageSet, batch: int, world: World, augmentation: Augmentation = COPYING) -> Loader:
    how = Preprocessing.of(images.images, image_size=0, fit="pad", normalize=True)
    return Loader(images, how, batch, CPU, augmentation=augmentation, world=world)


@settings(max_examples=100, deadline=None)
@given(batch=st.integers(2, 300), size=st.integers(1, 40))
def test_parts_of_a_batch_are_disjoint_and_complete_or_whole_copies(batch: int, size: int) -> None:
    worlds = [World(rank, size) for rank in range(size)]
    parts = [list(range(batch)[world.rows(batch)]) for world in worlds]
    copies = {world.copies(batch) for world in worlds}.pop()
    assert sorted(row for part in parts for row in part) == sorted(list(range(batch)) * copies)
    assert all(len(part) >= 2 and part[0] % 2 == 0 for part in parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= 3
    # the mean of the processes' weighted means is the mean of the batch
    numbers = np.random.default_rng(0).random(batch)
    means = [world.weight(batch) * numbers[part].mean() for world, part in zip(worlds, parts, strict=True)]
    assert np.mean(means) == pytest.approx(numbers.mean())


@pytest.mark.parametrize("augmentation", [COPYING, ROUNDING])
@settings(max_examples=10, deadline=None)
@given(count=st.integers(2, 40), batch=st.integers(2, 20), size=st.integers(2, 5), channels=st.sampled_from([1, 3]),
       epoch=st.integers(0, 3))  # fmt: skip
def test_the_parts_of_all_processes_make_the_batches_of_one(
    augmentation: Augmentation, count: int, batch: int, size: int, channels: int, epoch: int
) -> None:
    def batches(world: World) -> list[tuple[Tensor, Tensor]]:
        return list(make_loader(image_set(count, channels), batch, world, augmentation).shuffled(7, epoch))

    parts = [batches(World(rank, size)) for rank in range(size)]
    for number, (x, y) in enumerate(batches(World())):
        one = World(0, size).copies(len(x)) == 1
        for found in [[part[number] for part in parts]] if one else [[part[number]] for part in parts]:
            images, labels = (torch.cat(tensors) for tensors in zip(*found, strict=True))
            tolerance = 0 if augmentation is COPYING else 1e-5
            torch.testing.assert_close(images, x, rtol=0, atol=tolerance)
            torch.testing.assert_close(labels, y, rtol=0, atol=tolerance)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 60), batch=st.integers(1, 20), size=st.integers(1, 7))
def test_an_evaluation_sees_each_image_once(count: int, batch: int, size: int) -> None:
    images = image_set(count)
    whole = torch.cat([x for x, _ in make_loader(images, batch, World())])
    parts = [list(make_loader(images, batch, World(rank, size)).for_rank(World(rank, size))) for rank in range(size)]
    dealt = [parts[number % size][number // size][0] for number in range(sum(map(len, parts)))]
    assert torch.equal(torch.cat(dealt), whole)


def train_or_resume(recipe: Recipe, name: str, stop_after: int = 0) -> dict[str, Any]:
    """Train, or resume. After epoch `stop_after` the first process gets SIGINT, which stops all. Return the summary."""

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    folder = Path("runs") / name
    if folder.exists():
        return dict(resume(folder, on_epoch=stop, progress="none").summary)
    return dict(train(recipe, name=name, threads=1, on_epoch=stop, progress="none").summary)


def weights(name: str) -> dict[str, Tensor]:
    return read_weights(Path("runs") / name / "last.safetensors")


def assert_close(name: str, other: str, tolerance: float = 2e-4) -> None:
    for key, tensor in weights(name).items():
        torch.testing.assert_close(
            tensor, weights(other)[key], rtol=tolerance, atol=tolerance, msg=lambda m, key=key: f"{key}: {m}"
        )
    for row, expected in zip(figures(Path("runs") / name)[:-1], figures(Path("runs") / other)[:-1], strict=True):
        for key in ("loss", "val_loss"):
            assert row[key] == pytest.approx(expected[key], rel=1e-4), key
        assert row["images"] == expected["images"]


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (2, {"mixup": 0.3, "cutmix": 0.3, "shift": 1, "balance": "weights", "clip_norm": 1.0}),
        (3, {"model": "lenet-bn", "sync_batch_norm": True, "average": "ema", "average_decay": 0.9}),
        (3, {"model": "lenet-bn", "sync_batch_norm": True, "limit": 20, "batch_size": 4, "epochs": 1}),  # not divided
        (2, {"model": "resnet18-small", "sync_batch_norm": True, "optimizer": "muon", "learning_rate": 0.02,
             "epochs": 1, "limit": 60, "batch_size": 32, "image_size": 8}),
        (2, {"micro_batch": 20, "on_nan": "skip"}),
    ],
)  # fmt: skip
def test_several_processes_end_with_the_weights_of_one(size: int, changes: dict[str, Any], forks: Any) -> None:
    recipe = SMALL.changed(**changes)
    for answer in run_processes(forks, size, train_or_resume, recipe, "several"):
        assert not isinstance(answer, BaseException), answer
    train(recipe, name="one", threads=1, progress="none")
    assert_close("several", "one")


def test_processes_divide_unequal_parts_into_equally_many_pieces(forks: Any) -> None:
    # Parts of 20, 22 and 22 images. In each piece, batch norm waits for the others' sums.
    recipe = SMALL.changed(model="lenet-bn", sync_batch_norm=True, micro_batch=20, batch_size=64, epochs=1)
    found = run_processes(forks, 3, train_or_resume, recipe, "pieces")
    assert found[0] == found[1] == found[2] == open_run("runs/pieces").summary()


def test_a_training_continues_with_another_number_of_processes(forks: Any) -> None:
    recipe = SMALL.changed(epochs=3, model="lenet-bn", sync_batch_norm=True)
    stopped = run_processes(forks, 2, train_or_resume, recipe, "run", 1)
    assert all(isinstance(answer, KeyboardInterrupt | ReportedElsewhere) for answer in stopped), stopped
    assert len(open_run("runs/run").metrics()) == 1
    assert isinstance(run_processes(forks, 1, train_or_resume, recipe, "run", 2)[0], KeyboardInterrupt)
    assert len(open_run("runs/run").metrics()) == 2
    finished = run_processes(forks, 2, train_or_resume, recipe, "run")
    assert finished[0] == finished[1] == open_run("runs/run").summary()
    train(recipe, name="one", threads=1, progress="none")
    assert_close("run", "one")


def train_and_die(recipe: Recipe, rank: int, step: int) -> Any:
    """Train; process `rank` dies at update `step`. With a rank that does not exist, none dies."""
    real, calls = loop.train_step, iter(range(10**6))

    def update(*args: Any, **more: Any) -> Any:
        if os.environ["RANK"] == str(rank) and next(calls) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)

    loop.train_step = update
    return train(recipe, name="run", threads=1, progress="none").summary


def test_a_job_continues_to_the_same_bits_after_a_process_dies(forks: Any) -> None:
    recipe = SMALL.changed(model="lenet-bn", save_steps=1, save_seconds=0, average="ema")  # batch norm per process
    for rank, step in ((0, 5), (1, 1)):  # torchrun repeats the command, which finds the run by its name
        answers = run_processes(forks, 2, train_and_die, recipe, rank, step)
        assert answers[rank] == KILLED
        assert isinstance(answers[1 - rank], CnnlabError)
    again = run_processes(forks, 2, train_and_die, recipe, 2, 0)
    assert again[0] == open_run("runs/run").summary(), again
    (Path("runs") / "run").rename("killed")
    assert isinstance(run_processes(forks, 2, train_and_die, recipe, 2, 0)[1], dict)
    assert_same_run(Path("killed"), Path("runs/run"))


def train_longer(epochs: int, step: int) -> Any:
    """Resume the run "first" for more epochs; process 0 dies at update `step`."""
    real, calls = loop.train_step, iter(range(10**6))

    def update(*args: Any, **more: Any) -> Any:
        if os.environ["RANK"] == "0" and next(calls) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)

    loop.train_step = update
    return resume("runs/first", name="longer", epochs=epochs, threads=1, progress="none").summary


def test_a_restarted_job_continues_its_longer_training(forks: Any) -> None:
    train(SMALL.changed(epochs=1, save_steps=1), name="first", threads=1, progress="none")
    assert run_processes(forks, 2, train_longer, 3, 5)[0] == KILLED
    assert open_run("runs/longer").summary() is None
    again = run_processes(forks, 2, train_longer, 3, -1)  # the same command
    assert again[0] == open_run("runs/longer").summary(), again
    assert [path.name for path in sorted(Path("runs").iterdir())] == ["first", "longer"]


def find_batch(limit: int) -> int:
    """Return the batch size with which a process trains if a step of `limit` images fits, half as many in the second."""
    real = autotune.train_step

    def full(model: torch.nn.Module, optimizer: Any, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        if len(x) > limit // (1 + int(os.environ["RANK"])):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, optimizer, x, *rest)

    autotune.train_step = full
    recipe = SMALL.changed(epochs=1, limit=64, batch_size=64)
    return train(recipe, name=f"fits-{limit}", auto_batch=True, threads=1, progress="none").run.recipe.batch_size


def test_a_batch_that_fits_the_smallest_device_is_found(forks: Any) -> None:
    assert run_processes(forks, 2, find_batch, 64) == [64, 64]
    assert run_processes(forks, 2, find_batch, 40) == [32, 32]  # 16 images in the second process


class Activating(torch.nn.BatchNorm2d):
    """A batch norm that does more, as in timm."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_only_pytorchs_own_batch_norm_is_synced(forks: Any) -> None:
    assert not can_sync(Activating(3))
    assert can_sync(torch.nn.BatchNorm1d(3))
    errors = run_processes(forks, 2, train_from_scratch)
    assert [type(error) for error in errors] == [CnnlabError, ReportedElsewhere]
    assert "sync_batch_norm" in str(errors[0])


def train_from_scratch() -> Any:
    return train(SMALL.changed(model="lenet-bn-scratch", sync_batch_norm=True), name="run", progress="none").summary


@pytest.mark.parametrize(
    ("before", "threads", "now", "expected"), [(1, 4, 2, 2), (4, 1, 1, 4), (2, 2, 2, 2), (1, 2, 4, 1)]
)
def test_threads_are_divided_anew_among_another_number_of_processes(
    before: int, threads: int, now: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(SMALL.changed(epochs=1, limit=100), name="run", threads=1, progress="none")
    monkeypatch.setattr(runs, "first_session", lambda run: {"threads": threads, "processes": before})
    monkeypatch.setattr("cnnlab.training.session.available_cores", lambda: 8)
    monkeypatch.setattr("cnnlab.training.session.processes", lambda: now)
    with Session("auto", None, None, False, "none") as session:
        session.continue_as(open_run("runs/run"))
        assert session.threads == expected


def evaluate_in_world(size: int) -> tuple[float, Tensor, Tensor | None]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3))
    images = image_set(50)
    with joined_world(CPU) as world:
        assert world.size == size
        found = evaluate(model, make_loader(images, 7, world), 3, keep=True, keep_logits=True, world=world)
    return found.loss, found.confusion, found.logits


def test_an_evaluation_is_the_same_for_any_number_of_processes(forks: Any) -> None:
    loss, confusion, logits = evaluate_in_world(1)
    for other in run_processes(forks, 3, evaluate_in_world, 3):
        assert not isinstance(other, BaseException), other
        assert other[0] == loss
        assert torch.equal(other[1], confusion)
        assert logits is not None
        assert torch.equal(other[2], logits)


def normalize_parts(parts: list[Tensor], copies: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    with joined_world(CPU) as world:
        layer = SyncedBatchNorm(4)
        layer.world, layer.copies = world, copies
        x = parts[world.rank].clone().requires_grad_()
        y = layer(x)
        (y * y.detach().cos()).sum().backward()
        assert x.grad is not None
        assert layer.running_var is not None
        return y.detach(), x.grad, layer.running_var


def test_synced_batch_norm_matches_pytorch_on_the_whole_batch(forks: Any) -> None:
    x = torch.randn(7, 4, 3, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = run_processes(forks, 2, normalize_parts, [x.detach()[:4], x.detach()[4:]])
    layer = torch.nn.BatchNorm2d(4)
    y = layer(x)
    (y * y.detach().cos()).sum().backward()
    for got, expected in zip(zip(*found, strict=True), (y, x.grad), strict=False):
        torch.testing.assert_close(torch.cat(got), expected)
    torch.testing.assert_close(found[1][2], layer.running_var)
    for got in run_processes(forks, 2, normalize_parts, [x.detach()] * 2, 2):  # a batch that is too small to divide
        for one, expected in zip(got, (y, x.grad, layer.running_var), strict=True):
            torch.testing.assert_close(one, expected)


def test_no_key_of_an_earlier_start_is_read() -> None:
    store, size = dist.HashStore(), 3  # torchrun keeps one store across restarts
    prefixes = set()
    for _ in range(3):
        with ThreadPoolExecutor(size) as pool:
            found = list(pool.map(lambda rank: fresh_store(store, rank, size, 20), range(size)))
        found[0].set("address", "here")
        assert all(part.get("address") == b"here" for part in found)
        prefixes |= {key for key in store.list_keys() if key.endswith("address")}
    assert len(prefixes) == 3
    with pytest.raises(RuntimeError, match=r"processes .*\b0\.2 s"):
        fresh_store(store, 1, size, 0.2)  # the list of an earlier start does not contain this process


def test_a_finished_job_that_is_restarted_returns_its_result(forks: Any) -> None:
    first = run_processes(forks, 2, train_and_die, SMALL.changed(epochs=1), 2, 0)
    assert isinstance(
        run_processes(forks, 2, train_and_die, SMALL.changed(epochs=1), 2, 0)[0], CnnlabError
    )  # the name is taken
    assert run_processes(forks, 2, train_after_restart, SMALL.changed(epochs=1)) == first


def train_after_restart(recipe: Recipe) -> Any:
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
    return train(recipe, name="run", threads=1, progress="none").summary


def fail_in_process(where: int) -> None:
    with joined_world(CPU) as world, world.together():
        if world.rank == where:
            raise CnnlabError("no such folder")


@pytest.mark.parametrize("where", [0, 1])
def test_an_error_in_one_process_ends_all_processes_and_is_reported_once(where: int, forks: Any) -> None:
    first, second = run_processes(forks, 2, fail_in_process, where)
    assert type(first) is CnnlabError
    assert "no such folder" in str(first)
    assert isinstance(second, ReportedElsewhere)


def test_bad_numbers_of_processes_are_one_line(cnnlab: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("0", "-1", "100000"):
        answer = cnnlab("train", "--nproc", value)
        assert answer.returncode == 2
        assert "--nproc" in answer.stderr
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert cnnlab("train", "--nproc", "2").returncode == 2
    assert cnnlab("train", "--seeds", "2").returncode == 2
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    assert cnnlab("runs").returncode == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nccl_training_with_one_process_matches_plain_training(tmp_path: Path) -> None:
    dist.init_process_group(
        "cpu:gloo,cuda:nccl", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        torch.manual_seed(0)
        x, y = torch.randn(8, 6, device="cuda"), torch.arange(8, device="cuda") % 3
        plain = torch.nn.Linear(6, 3).cuda()
        copy = torch.nn.Linear(6, 3).cuda()
        copy.load_state_dict(plain.state_dict())
        replica = Replica(copy, World())
        for model, net in ((plain, plain), (replica, copy)):
            train_step(model, torch.optim.SGD(net.parameters(), lr=0.1), x, y)
        for one, other in zip(plain.parameters(), copy.parameters(), strict=True):
            torch.testing.assert_close(one, other)
        tensor = torch.ones(3, device="cuda")
        dist.all_reduce(tensor)
        assert tensor.tolist() == [1, 1, 1]
    finally:
        dist.destroy_process_group()
