"""The Python interface: settings as keywords, and the batches that a network sees."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import cnnlab
from cnnlab import CnnlabError
from cnnlab.recipes import RECIPES
from cnnlab.training.autotune import _Cache
from cnnlab.training.plan import Workload
from conftest import Command, one_line_error


def test_any_setting_is_a_keyword() -> None:
    result = cnnlab.train("digits", epochs=1, batch_size=128, limit=200, progress="none")
    assert result.run.recipe.batch_size == 128
    assert result.run.recipe.name == "digits, epochs=1, batch_size=128, limit=200"
    assert [row["epoch"] for row in result.history] == [1]
    assert isinstance(result.model, torch.nn.Module)
    assert not result.model.training
    same = cnnlab.train(replace(RECIPES["digits"], epochs=1, batch_size=128, limit=200), progress="none")
    assert same.summary["loss"] == result.summary["loss"]
    x = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(cnnlab.load_model(result.run)(x), result.model(x))


@pytest.mark.parametrize(("keyword", "near"), [("epoch", "epochs"), ("lr", "learning_rate"), ("momentun", "momentum")])
def test_an_unknown_keyword_suggests_similar_names(keyword: str, near: str) -> None:
    for call in (cnnlab.train, cnnlab.loader, cnnlab.train_seeds):
        with pytest.raises(CnnlabError) as error:
            call(**{keyword: 3})  # type: ignore[operator]
        assert near in str(error.value)
        assert "alternating_flip" not in str(error.value)  # similar names only, not all that are known


def test_the_loader_yields_reproducible_shuffled_batches() -> None:
    batches = cnnlab.loader("digits", batch_size=100)
    assert len(batches) == 12
    assert batches.classes == list("0123456789")
    first = list(batches)
    x, y = first[0]
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((100, 1, 28, 28), torch.float32, (100,), torch.int64)
    assert sum(len(y) for _, y in first) == 1151
    second = list(batches)  # the second epoch
    assert not torch.equal(first[0][0], second[0][0])
    again = list(cnnlab.loader("digits", batch_size=100))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    # without augmentation, the split's pixels, normalized to mean 0 and standard deviation 1
    plain = torch.cat([x for x, _ in cnnlab.loader("digits", shift=0)])
    assert plain.mean().abs() < 0.05


def test_images_of_a_training_keep_their_name_in_its_evaluation() -> None:
    images = torch.randint(0, 256, (60, 12, 12), dtype=torch.uint8).numpy()
    labels = (torch.arange(60) % 3).numpy()
    result = cnnlab.train(model="lenet", data=(images, labels), epochs=1, progress="none")
    found = cnnlab.evaluate_run(result.run, data=(images, labels))
    assert (found.data, found.other) == (result.run.recipe.data, False)


def test_the_loader_refuses_shifts_by_whole_images() -> None:
    with pytest.raises(CnnlabError, match="shift=28"):
        cnnlab.loader("digits", shift=28)


def test_the_loader_of_other_splits_is_in_order() -> None:
    images = cnnlab.load_images("digits", "test")
    assert images is not None
    test = cnnlab.loader("digits", "test")
    assert torch.equal(torch.cat([y for _, y in test]), images.labels)
    assert torch.equal(torch.cat([x for x, _ in test]), test.preprocessing(images.images))
    assert sum(len(y) for _, y in cnnlab.loader("digits", "validation")) == 287
    with pytest.raises(CnnlabError, match="eval_split"):
        cnnlab.loader("digits", "validation", eval_split="test", val_fraction=0.0)
    with pytest.raises(CnnlabError, match="validation"):
        cnnlab.loader("digits", "valdation")


def test_the_examples_of_the_documentation_run() -> None:
    text = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 8
    Path("photos").mkdir()
    for file in ("scan.png", "photos/1.png"):
        Image.new("L", (30, 20), 128).save(file)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)
    assert len(names["result"].history) == 1  # type: ignore[attr-defined]
    assert len(names["found"]) == 2  # type: ignore[arg-type]


class Net(torch.nn.Module):
    """A small network with dropout and batch norm: resuming needs the random state and the buffers."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(in_channels, 4, 3, stride=2)
        self.norm = torch.nn.BatchNorm2d(4)
        self.drop = torch.nn.Dropout(0.3)
        self.head = torch.nn.Linear(36, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.norm(self.conv(x)).relu()).flatten(1))


@pytest.fixture(scope="module")
def digits() -> cnnlab.ImageSet:
    images = cnnlab.load_images("digits", "train")
    assert images is not None
    return images.take(torch.arange(200))


def test_a_module_and_its_builder_are_trained(digits: cnnlab.ImageSet) -> None:
    mine = Net()
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    result = cnnlab.train(mine, digits, epochs=2, progress="none")
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())
    assert isinstance(result.model, Net)
    assert not torch.equal(result.model.head.weight, mine.head.weight)
    assert result.run.info["model"]["name"] == f"{__name__}:Net"
    assert result.run.info["data"]["source"] == "memory:ImageSet"
    model = cnnlab.load_model(result.run, model=mine)
    assert torch.equal(model.network.head.weight, result.model.head.weight)  # type: ignore[union-attr]
    assert len(model.predict(digits.images[:3])) == 3

    sizes: list[dict[str, int]] = []

    def build(num_classes: int, image_size: int) -> Net:
        sizes.append({"num_classes": num_classes, "image_size": image_size})
        return Net(num_classes)

    arrays = (digits.images.numpy(), digits.labels.numpy())
    seeds = cnnlab.train_seeds(build, 2, data=(arrays, arrays), epochs=1, progress="none")
    assert sizes[0] == {"num_classes": 10, "image_size": 8}
    assert seeds.results[0].summary["loss"] != seeds.results[1].summary["loss"]
    assert seeds.results[0].summary["images"] == {"train": 200, "validation": 200}
    assert isinstance(seeds.results[1].model, Net)
    again = cnnlab.train_seeds(build, 2, data=(arrays, arrays), epochs=1, progress="none")
    assert [r.summary["loss"] for r in again.results] == [r.summary["loss"] for r in seeds.results]


def test_user_networks_and_images_mix_with_named_ones(digits: cnnlab.ImageSet) -> None:
    own_network = cnnlab.train(Net, data="digits", epochs=1, limit=200, image_size=8, progress="none")
    assert own_network.run.recipe.data == "digits"
    assert cnnlab.evaluate_run(own_network.run, model=Net).split == "test"
    quick = replace(RECIPES["digits"], epochs=1, name="quick")
    own_images = cnnlab.train(quick, data=digits, progress="none")
    assert own_images.run.recipe.image_size == 28
    named = cnnlab.train(quick, limit=200, progress="none")
    assert own_images.model.state_dict().keys() == named.model.state_dict().keys()
    both = cnnlab.train(quick, model=Net, data=digits, image_size=8, progress="none")
    assert both.run.recipe.optimizer == quick.optimizer
    batches = cnnlab.loader(digits, batch_size=50)
    assert next(iter(batches))[0].shape == (50, 1, 8, 8)


@pytest.mark.parametrize("module", [True, False])
def test_an_interrupted_run_of_a_user_network_resumes_to_the_same_bits(digits: cnnlab.ImageSet, module: bool) -> None:
    torch.manual_seed(0)
    mine = Net() if module else Net
    settings = {"data": digits, "epochs": 3, "batch_size": 32, "flip": True, "progress": "none"}
    undisturbed = cnnlab.train(mine, name="undisturbed", **settings)

    def interrupt(row: dict[str, float]) -> None:
        if row["epoch"] == 1:
            signal.raise_signal(signal.SIGINT)  # stops after the first step of the next epoch

    with pytest.raises(cnnlab.TrainingInterrupted) as stopped:
        cnnlab.train(mine, name="interrupted", on_epoch=interrupt, **settings)
    assert "cnnlab.resume('runs/interrupted', model=..., data=...)" in str(stopped.value)
    for wrong in ({}, {"model": mine}, {"data": digits}, {"model": mine, "data": digits.take(torch.arange(100))}):
        with pytest.raises(CnnlabError):
            cnnlab.resume("runs/interrupted", progress="none", **wrong)
    other = Net()  # its weights do not matter: they are read from the checkpoint
    resumed = cnnlab.resume("runs/interrupted", model=other if module else Net, data=digits, progress="none")
    assert isinstance(resumed, cnnlab.Result)
    for name in ("last.safetensors", "best.safetensors"):
        assert (resumed.run.path / name).read_bytes() == (undisturbed.run.path / name).read_bytes()
    done = cnnlab.resume("runs/interrupted", model=Net, progress="none")
    assert torch.equal(done.model.head.weight, undisturbed.model.head.weight)  # type: ignore[union-attr]


def test_seeds_of_a_builder_are_resumed(digits: cnnlab.ImageSet) -> None:
    settings = {"data": digits, "epochs": 1, "progress": "none"}
    undisturbed = cnnlab.train_seeds(Net, 2, name="undisturbed", **settings)

    def interrupt(row: dict[str, float]) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(cnnlab.TrainingInterrupted):
        cnnlab.train_seeds(Net, 2, name="interrupted", on_epoch=interrupt, **settings)
    with pytest.raises(CnnlabError):  # the second seed would start from this module's weights
        cnnlab.resume("runs/interrupted", model=Net(), data=digits, progress="none")
    resumed = cnnlab.resume("runs/interrupted", model=Net, data=digits, progress="none")
    assert isinstance(resumed, cnnlab.SeedsResult)
    for one, other in zip(resumed.results, undisturbed.results, strict=True):
        assert torch.equal(one.model.head.weight, other.model.head.weight)  # type: ignore[union-attr, arg-type]


def test_a_run_of_a_user_network_needs_that_network(digits: cnnlab.ImageSet, request: pytest.FixtureRequest) -> None:
    command: Command = request.getfixturevalue("cnnlab")  # here `cnnlab` is the package, so get the fixture by name
    run = cnnlab.train(Net, data=digits, epochs=1, name="mine", progress="none").run
    calls: list[Callable[..., object]] = [
        cnnlab.load_model,
        cnnlab.evaluate_run,
        lambda run: cnnlab.evaluate_run(run, model=Net),
        lambda run: cnnlab.predict(run, "scan.png"),
        lambda run: cnnlab.evaluate_run(run, data=digits),
        lambda run: cnnlab.train(run.recipe),
        lambda run: cnnlab.load_model(run, model=torch.nn.Linear(2, 2)),
    ]
    for call in calls:
        with pytest.raises(CnnlabError) as error:
            call(run)
        assert "\n" not in str(error.value)
    assert cnnlab.evaluate_run(run, model=Net, data=digits).split == "validation"
    test = cnnlab.load_images("digits", "test")
    assert test is not None
    found = cnnlab.evaluate_run(run, model=Net, data=test, split="test")
    assert (found.split, found.result.count) == ("test", len(test))
    few = cnnlab.evaluate_run(run, model=Net, data=(test.images[:5], test.labels[:5]), split="test")
    assert few.result.count == 5

    (run.path / "summary.json").unlink()  # makes the run unfinished, so it can be resumed
    Image.new("L", (8, 8)).save("scan.png")
    for words in (
        ("eval", run.path),
        ("predict", run.path, "scan.png"),
        ("figures", "1.1", "--run", run.path),
        ("train", "--resume", run.path),
    ):
        assert "model=" in one_line_error(command(*words)), words
    assert "mine" in command("runs").stdout
    named = cnnlab.train("digits", epochs=1, limit=100, progress="none").run
    with pytest.raises(CnnlabError):
        cnnlab.evaluate_run(named, model=Net)


class Reads(torch.nn.Module):
    """A network whose forward pass reads a value, which a tensor on the meta device does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = torch.nn.Linear(64, 64).requires_grad_(False)
        self.head = torch.nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.frozen(x.flatten(1))
        return self.head(x if x.mean().item() > 0 else -x)


def test_a_network_may_read_values_and_have_frozen_layers(digits: cnnlab.ImageSet) -> None:
    mine = Reads()
    for settings in ({}, {"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "muon"}, {"average": "ema"}):
        result = cnnlab.train(mine, data=digits, epochs=2, progress="none", **settings)
        assert torch.equal(result.model.frozen.weight, mine.frozen.weight)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize(
    "network",
    [
        Net(num_classes=7),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 10),
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(63, 10)),
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(10)),
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).requires_grad_(False),
        torch.nn.LSTM(8, 10),
        lambda num_classes: "lenet",
        3,
    ],
)
def test_a_network_that_does_not_fit_is_refused_in_one_line(network: object, digits: cnnlab.ImageSet) -> None:
    with pytest.raises(CnnlabError) as error:
        cnnlab.train(network, data=digits, epochs=1, progress="none")  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert not Path("runs").exists() or not any(Path("runs").iterdir())


def test_wrong_calls_are_refused_in_one_line(digits: cnnlab.ImageSet) -> None:
    calls: list[Callable[[], object]] = [
        lambda: cnnlab.train_seeds(Net(), 2, data=digits),
        lambda: cnnlab.train(Net, model=Net),
        lambda: cnnlab.train(RECIPES["manual/lenet"], digits, model=Net()),  # init would overwrite its weights
        lambda: cnnlab.train("lenet"),
        lambda: cnnlab.train(Net, data=Path("photos")),
        lambda: cnnlab.train(Net, data=digits, eval_split="test"),
        lambda: cnnlab.train(Net, data=digits, epoch=3),
        lambda: cnnlab.train(digits),  # type: ignore[arg-type]
        lambda: cnnlab.train(data=digits, model="lenat"),
    ]
    for call in calls:
        with pytest.raises(CnnlabError) as error:
            call()
        assert "\n" not in str(error.value)


def test_networks_with_the_same_name_have_separate_plans() -> None:
    def work(hidden: int) -> Workload:
        def build() -> torch.nn.Module:
            return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, hidden), torch.nn.Linear(hidden, 10))

        return Workload(cnnlab.Recipe(model="mine:Net"), build, (1, 8, 8), 10, torch.device("cpu"))

    assert _Cache(work(3), [], False).path != _Cache(work(4), [], False).path
    assert _Cache(work(3), [], False).path == _Cache(work(3), [], False).path
