"""The training loop: correct against a reference, reproducible to the bit, resumed wherever it was interrupted."""

from __future__ import annotations

import json
import platform
import shutil
import signal
from pathlib import Path
from statistics import mean, stdev
from unittest.mock import MagicMock

import pytest
import safetensors.torch
import torch
from comparing import Interrupt, assert_same_run, interrupted
from torch import Tensor, nn

from cnnlab import Recipe, evaluate_run, resume, train, train_seeds
from cnnlab.data import SourceOptions, data_folder, load_images, splits
from cnnlab.data.augment import Augmentation
from cnnlab.data.loader import Loader, Preprocessing
from cnnlab.defaults import choose_recipe
from cnnlab.device.determinism import reproducible
from cnnlab.device.hardware import available_cores, pick_device
from cnnlab.io.errors import CnnlabError, TrainingInterrupted
from cnnlab.io.interrupt import CtrlC
from cnnlab.models import build_model
from cnnlab.recipes import RECIPES
from cnnlab.training import autotune, checkpoint, folders, loop, runs
from cnnlab.training.locks import lock_pid
from cnnlab.training.optim import make_optimizer
from cnnlab.training.progress import Progress
from cnnlab.training.step import train_step
from conftest import Command


def weights(folder: Path, which: str = "last") -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / f"{which}.safetensors")


# Correct


def test_step_matches_the_textbook_formula() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    w, b = model.weight.detach().clone(), model.bias.detach().clone()
    x, y = torch.randn(7, 5, dtype=torch.float64), torch.arange(7) % 3
    optimizer = make_optimizer(model, Recipe(learning_rate=0.3))
    loss, correct = train_step(model, optimizer, x, y)
    logits = x @ w.T + b
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    assert loss.item() == pytest.approx(-p[torch.arange(7), y].log().mean().item(), rel=1e-12)
    assert correct.item() == (logits.argmax(1) == y).sum().item()
    error = (p - torch.nn.functional.one_hot(y, 3)) / 7
    torch.testing.assert_close(model.weight.detach(), w - 0.3 * error.T @ x, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(model.bias.detach(), b - 0.3 * error.sum(0), rtol=1e-12, atol=1e-14)


def test_no_weight_decay_for_biases_and_norms() -> None:
    model = build_model("lenet-bn", num_classes=10, in_channels=1, image_size=28)
    optimizer = make_optimizer(model, Recipe(weight_decay=0.1, momentum=0.9))
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for _, p in model.named_parameters():
        assert decays[id(p)] == (0.1 if p.ndim > 1 else 0.0)


def test_loop_matches_the_manuals_train_ch6() -> None:
    """The manual's loop, written out and run on the same batches, ends with the same weights and figures."""
    recipe = RECIPES["manual/lenet-bn"].changed(data="digits", image_size=28, epochs=2, learning_rate=0.5, limit=600)
    result = train(recipe, threads=1)

    images, test = splits.load_splits(recipe, SourceOptions(data_dir=data_folder()))
    pre = Preprocessing.of(images.images, image_size=28, fit="pad", normalize=False)
    loader = Loader(images, pre, 256, torch.device("cpu"))
    with reproducible(0, 1):
        net = build_model("lenet-bn", num_classes=10, in_channels=1, image_size=28)

        def init_weights(m: nn.Module) -> None:
            if type(m) in (nn.Linear, nn.Conv2d):
                nn.init.xavier_uniform_(m.weight)

        net.apply(init_weights)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        loss_function = nn.CrossEntropyLoss()
        for epoch in range(2):
            loss_sum, correct, count = 0.0, 0.0, 0
            net.train()
            for x, y in loader.shuffled(0, epoch):
                optimizer.zero_grad()
                y_hat = net(x)
                loss = loss_function(y_hat, y)
                loss.backward()
                optimizer.step()
                loss_sum += loss.item() * len(y)
                correct += (y_hat.argmax(1) == y).sum().item()
                count += len(y)
        net.eval()
        with torch.no_grad():
            test_acc = (net(pre(test.images)).argmax(1) == test.labels).double().mean().item()
    for name, value in weights(result.run.path).items():
        # Equal up to rounding: the memory format may differ.
        torch.testing.assert_close(value, net.state_dict()[name], rtol=1e-3, atol=1e-5)
    assert count == 600
    assert result.summary["loss"] == pytest.approx(loss_sum / count, rel=1e-5)
    assert result.summary["train_acc"] == pytest.approx(correct / count)
    assert result.summary["test_acc"] == pytest.approx(test_acc)


@pytest.mark.usefixtures("drawn_curves")
def test_the_run_folder_and_the_printed_lines_are_complete(quick: Recipe) -> None:
    result = train(quick)
    path = result.run.path
    names = {p.name for p in path.iterdir()} | {".lock"}  # some systems keep the lock file, others remove it
    assert names == {
        "recipe.json", "run.json", "environment.json", "metrics.jsonl", "tensorboard", "checkpoint.safetensors",
        "last.safetensors", "best.safetensors", "curves.png", "summary.json", ".lock",
    }  # fmt: skip
    assert Recipe.from_dict(json.loads((path / "recipe.json").read_text())) == quick
    info = json.loads((path / "run.json").read_text())
    assert (info["data"]["train"], info["data"]["validation"]) == (256, 256)
    (session,) = json.loads((path / "environment.json").read_text())["sessions"]
    assert session["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert (path / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = result.run.metrics()
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(row["compute_seconds"] <= row["train_seconds"] <= row["seconds"] for row in rows)
    s = result.summary
    assert s["images_per_second"] == pytest.approx(2 * 256 / sum(row["train_seconds"] for row in rows))
    lines = str(result).splitlines()
    assert lines[0] == f"loss {s['loss']:.3f}, train acc {s['train_acc']:.3f}, val acc {s['val_acc']:.3f}"
    assert lines[1] == f"{s['images_per_second']:.1f} images/s on cpu, wall-clock including data"
    assert lines[2].startswith(f"val balanced acc {s['val_balanced_acc']:.3f}; ")
    assert lines[-1] == f"next: cnnlab eval {path}"
    best = max(range(2), key=lambda i: (rows[i]["val_acc"], -rows[i]["val_loss"]))
    assert (s["best_epoch"], s["best"]) == (best + 1, rows[best]["val_acc"])


def test_tensorboard_events_match_the_metrics(quick: Recipe) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(quick).run
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    for tag, key in (("loss/train", "loss"), ("accuracy/validation", "val_acc"), ("accuracy/train", "train_acc")):
        values = [(e.step, e.value) for e in events.Scalars(tag)]
        assert values == [(row["epoch"], pytest.approx(row[key])) for row in run.metrics()]


def test_evaluating_on_the_test_set_is_noted(quick: Recipe) -> None:
    result = train(quick.changed(eval_split="test", val_fraction=0.0))
    assert "test set" in str(result)
    assert "test acc" in str(result).splitlines()[0]
    assert "test set" not in str(train(quick))
    # the test set chooses nothing: the best epoch is that of the training loss
    losses = [row["loss"] for row in result.run.metrics()]
    assert result.summary["best_epoch"] == losses.index(min(losses)) + 1


def test_test_set_is_not_read_with_a_validation_split(quick: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    load = splits.load_images
    monkeypatch.setattr(splits, "load_images", lambda *args: (read.append(args[1]), load(*args))[1])
    train(quick)
    assert set(read) == {"train", "validation"}


def test_links_inside_a_reproduction_are_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "reproduction"
    for path in (folder, folder / "lenet"):
        path.mkdir()
    (folder / "reproduction.json").touch()
    (folder / "lenet" / "run.json").touch()
    (folder / "again").symlink_to(folder, target_is_directory=True)
    assert runs.folders_of_runs(folder) == [folder / "lenet"]


@pytest.mark.parametrize("number", ["9999999999", "0000000000000000000001", "-1"])
def test_an_invalid_number_in_a_lock_file_is_ignored(tmp_path: Path, number: str) -> None:
    (tmp_path / ".lock").write_text(f"process {number} on {platform.node()}\n")
    assert lock_pid(tmp_path) is None


def test_names_of_runs_are_numbered_or_checked(tmp_path: Path) -> None:
    recipe = RECIPES["digits"]
    assert [folders.new_folder(tmp_path, None, recipe).name for _ in range(2)] == [
        "digits-lenet-bn-001",
        "digits-lenet-bn-002",
    ]
    folders.new_folder(tmp_path, "mine", recipe)
    for name in ("mine", "../up", "a/b", "", ".hidden", "x" * 101, "new\nline", "-"):
        with pytest.raises(CnnlabError, match="mine.*exists" if name == "mine" else "run name"):
            folders.new_folder(tmp_path, name, recipe)


def test_weights_that_overflow_in_the_last_step_are_not_saved(quick: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = loop.train_step, []

    def wild(model: nn.Module, *rest: object) -> tuple[Tensor, Tensor]:
        answer = real(model, *rest)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 2 * 2:  # the last of two epochs of two steps
            with torch.no_grad():
                next(model.parameters()).fill_(float("inf"))
        return answer

    monkeypatch.setattr(loop, "train_step", wild)
    with pytest.raises(CnnlabError, match="weight.*NaN.*step 4 of 4.*epoch 2 of 2"):
        train(quick.changed(batch_size=128), name="wild")
    assert all(torch.isfinite(w).all() for w in weights(Path("runs/wild")).values())
    assert len((Path("runs/wild") / "metrics.jsonl").read_text().splitlines()) == 1


def test_batch_of_one_with_batch_norm_is_an_error(quick: Recipe) -> None:
    with pytest.raises(CnnlabError, match=r"batch_size=1\b.*lenet-bn.*micro_batch=0"):
        train(quick.changed(batch_size=1))
    train(quick.changed(batch_size=1, epochs=1, limit=12, freeze_batch_norm=True))


def test_absent_and_unknown_devices_are_errors() -> None:
    for name in ("cuda", "mps", "cuda:7"):
        if name == "cuda" and torch.cuda.is_available():
            continue
        with pytest.raises(CnnlabError, match=f"'{name}'.*--device"):
            pick_device(name)
    for name in ("gpu", "cuda:x", "cuda:-1", "cuda:²", ""):
        with pytest.raises(CnnlabError, match=f"unknown.*'{name}'"):
            pick_device(name)


# Reproducible


@pytest.mark.slow
@pytest.mark.usefixtures("every_core")
def test_two_processes_give_the_same_weights(installed: Command, cnnlab: Command, tmp_path: Path) -> None:
    """One is new, the other is this process, in which many tests have run."""
    threads = str(min(2, available_cores()))
    for name, command in (("a", installed), ("b", cnnlab)):
        answer = command(
            "train", "--name", name, "--set", "epochs=2", "--set", "limit=128", "--threads", threads, cwd=tmp_path
        )
        assert answer.returncode == 0, answer.stderr
    assert_same_run(tmp_path / "runs/a", tmp_path / "runs/b")


def test_earlier_work_in_the_process_does_not_matter(quick: Recipe) -> None:
    train(quick, name="a")
    torch.rand(5)
    train(quick.changed(model="lenet", seed=9))
    train(quick, name="b")
    assert_same_run(Path("runs/a"), Path("runs/b"))


def test_several_seeds_are_trained_and_summarized(quick: Recipe) -> None:
    result = train_seeds(quick, 3, name="three")
    assert [r.summary["seed"] for r in result.results] == [0, 1, 2]
    values = [r.summary["val_acc"] for r in result.results]
    assert result.summary["val_acc"] == {"n": 3, "mean": mean(values), "std": stdev(values)}
    assert f"{mean(values):.4f} ± {stdev(values):.4f}" in str(result)
    assert "mean ± std of 3 seeds" in str(result)
    train(quick.changed(seed=1), name="alone")
    assert_same_run(Path("runs/three/seed-1"), Path("runs/alone"))
    assert weights(Path("runs/three/seed-0"))["0.weight"].ne(weights(Path("runs/alone"))["0.weight"]).any()


# Interrupted and resumed


def test_first_ctrl_c_waits_for_a_safe_place_and_a_second_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    ctrl_c = CtrlC()
    with ctrl_c:
        ctrl_c.check()
    ctrl_c.__enter__()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        ctrl_c.check()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted):  # stops before anything else starts
        ctrl_c.__exit__(None, None, None)
    assert signal.getsignal(signal.SIGINT) is before


INTERRUPTED = RECIPES["digits"].changed(epochs=3, limit=256, batch_size=128, schedule="constant")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of INTERRUPTED that was not interrupted."""
    return train(INTERRUPTED, runs_dir=tmp_path_factory.mktemp("whole"), threads=1).run.path


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (loop, "save_weights"), (checkpoint, "save_checkpoint"), (loop, "evaluate"), (runs, "write_metrics"),
        (loop, "train_step"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("turn", [1, 3])
def test_interrupt_anywhere_loses_nothing(module: object, function: str, turn: int, whole: Path) -> None:
    path = interrupted(INTERRUPTED, turn, "run", module, function)
    resume(path, threads=1)
    assert_same_run(path, whole)


def test_equal_accuracies_are_ranked_by_loss() -> None:
    progress = Progress()
    for epoch, accuracy, loss in ((1, 0.9, 0.5), (2, 0.9, 0.4), (3, 0.9, 0.45), (4, 0.8, 0.1)):
        progress = progress.finish({"epoch": epoch, "val_acc": accuracy, "val_loss": loss}, INTERRUPTED)
    assert (progress.best_epoch, progress.best) == (2, [0.9, -0.4])


def test_run_killed_before_its_first_checkpoint_resumes_from_the_start(whole: Path) -> None:
    run = Path("run")
    run.mkdir()
    for name in ("recipe.json", "run.json"):
        shutil.copy(whole / name, run)
    resume(run, threads=1)
    assert_same_run(run, whole)
    # But a run with finished epochs is not silently started again without its checkpoint.
    (run / "summary.json").unlink()
    (run / "checkpoint.safetensors").unlink()
    with pytest.raises(CnnlabError, match=r"checkpoint\.safetensors.*exist"):
        resume(run)


def test_new_folder_is_removed_if_nothing_was_written(quick: Recipe) -> None:
    with Interrupt(1).patched(runs, "create_run"), pytest.raises(KeyboardInterrupt):
        train(quick, name="mine")
    assert not Path("runs/mine").exists()


def test_a_run_interrupted_after_its_last_epoch_reports_what_is_saved(
    quick: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cnnlab.training.train._save_curves", MagicMock(side_effect=KeyboardInterrupt))
        with pytest.raises(TrainingInterrupted, match="1 finished epoch .*cnnlab train --resume"):
            train(quick.changed(epochs=1), name="mine")
    assert resume("runs/mine").summary["epochs"] == 1  # type: ignore[union-attr]


def test_device_data_folder_and_skip_bad_are_remembered(shapes: Path, tmp_path: Path) -> None:
    (shapes / "dark" / "bad.png").write_bytes(b"")
    recipe = choose_recipe(data=f"folder:{shapes}", settings=["epochs=1", "batch_size=8"])
    run = train(recipe, name="run", device="cpu", skip_bad=True, data_dir=tmp_path).run
    assert run.info["data"]["data_dir"] == str(tmp_path)
    (run.path / "summary.json").unlink()
    assert resume("runs/run").summary["device"] == "cpu"  # no --skip-bad needed
    assert len(evaluate_run(run, split="validation").skipped) == len(run.info["data"]["skipped"])


def test_out_of_memory_is_an_error_with_a_remedy(quick: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(loop, "train_step", full)
    with pytest.raises(CnnlabError, match="memory.*batch_size=64.*28 pixels.*--set batch_size=32"):
        train(quick)


@pytest.mark.parametrize("measured", [False, True])
def test_nondeterministic_layer_is_an_error_with_a_remedy(
    measured: bool, quick: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object) -> None:
        # PyTorch's message about adaptive pooling on CUDA.
        raise RuntimeError(
            "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set"
        )

    monkeypatch.setattr(loop, "train_step", refused)
    monkeypatch.setattr(autotune, "train_step", refused)
    if measured:  # when the plan is measured, before the training
        monkeypatch.setattr(autotune, "MEASURE_FROM", {"cpu": 0.0})
        quick = quick.changed(epochs=4, batch_size=4, limit=256)
    with pytest.raises(CnnlabError, match=r"lenet-bn.*deterministic.*cpu.*adaptive_avg"):
        train(quick, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpu_generators_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["before"])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", states.append)
    with reproducible(0, 1):
        assert not states
    assert states == [["before"]]


def test_events_after_a_resume_have_each_epoch_once(quick: Recipe) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    resume(interrupted(quick.changed(epochs=3), 2, "run", checkpoint, "save_checkpoint"))
    events = EventAccumulator("runs/run/tensorboard")
    events.Reload()
    assert [e.step for e in events.Scalars("loss/train")] == [1, 2, 3]


def test_finished_run_is_left_unchanged(quick: Recipe) -> None:
    path = train(quick).run.path
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    result = resume(path)
    assert result.summary["epochs"] == 2
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def test_seeds_are_resumed_where_they_stopped(quick: Recipe) -> None:
    train_seeds(quick, 2, name="whole")
    with Interrupt(3).patched(loop, "evaluate"), pytest.raises(TrainingInterrupted):
        train_seeds(quick, 2, name="broken")
    assert not Path("runs/broken/summary.json").exists()
    assert resume("runs/broken").summary["loss"]["n"] == 2
    for seed in range(2):
        assert_same_run(Path(f"runs/whole/seed-{seed}"), Path(f"runs/broken/seed-{seed}"))


def test_resume_with_other_images_is_an_error(shapes: Path) -> None:
    recipe = choose_recipe(data=f"folder:{shapes}", settings=["epochs=3", "batch_size=8"])
    path = interrupted(recipe, 2, "run", loop, "evaluate")
    (shapes / "dark" / "00.png").unlink()
    with pytest.raises(CnnlabError, match=f"folder:{shapes}.*runs/run"):
        resume(path)
    with pytest.raises(CnnlabError, match="digits.*runs/run"):
        resume(path, data="digits")  # also too small for the network, but that is not the error


def test_resume_works_from_another_folder(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(choose_recipe(data="folder:shapes", settings=["epochs=1", "batch_size=8"]), name="run").run
    (run.path / "summary.json").unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert resume(tmp_path / "runs" / "run").summary["epochs"] == 1


@pytest.mark.slow
def test_manual_lenet_bn_learns_fashion_mnist(fashion_folder: Path) -> None:
    # A sixth of an epoch. The committed result has all ten epochs and five seeds.
    result = train(RECIPES["manual/lenet-bn"].changed(epochs=1, limit=10_240), data_dir=fashion_folder)
    (row,) = result.run.metrics()
    assert row["images"] == 10_240
    assert row["train_acc"] > 0.4
    assert (result.run.info["data"]["train"], result.run.info["data"]["test"]) == (10_240, 10_000)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_training_is_reproducible(quick: Recipe) -> None:
    for name in ("a", "b"):
        train(quick, name=name, device="cuda")
    assert_same_run(Path("runs/a"), Path("runs/b"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nothing_inside_an_epoch_waits_for_the_gpu() -> None:
    images = load_images("digits", "train")
    assert images is not None
    device = torch.device("cuda")
    pre = Preprocessing.of(images.images, image_size=28, fit="pad", normalize=True)
    loader = Loader(images, pre, 64, device, augmentation=Augmentation(shift=2, flip=True))
    model = build_model("lenet-bn", num_classes=10, in_channels=1, image_size=28).to(device)
    optimizer = make_optimizer(model, Recipe(momentum=0.9))
    statistics = torch.zeros(2, device=device)
    loss_sum, correct_count = statistics.unbind()
    batches = loader.shuffled(0, 0)
    next(batches)  # the normalization is copied to the device once
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x, y in batches:
            loss, correct = train_step(model, optimizer, x, y)
            loss_sum.add_(loss, alpha=len(y))
            correct_count.add_(correct)
    finally:
        torch.cuda.set_sync_debug_mode("default")
