"""`timm:NAME` and `torchvision:NAME`: other libraries' networks wherever a name is taken. No test needs internet."""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import GoogLeNet, Inception3, get_model_weights
from torchvision.transforms.functional import normalize

from cnnlab import load_model, open_run, resume, train
from cnnlab.io.errors import CnnlabError
from cnnlab.models import build_model
from cnnlab.models.external import accepts, published_weights
from cnnlab.recipe import Recipe
from conftest import Command, one_line_error


def build(name: str, channels: int = 1, classes: int = 5, size: int = 64, published: bool = False) -> nn.Module:
    return build_model(name, num_classes=classes, in_channels=channels, image_size=size, published=published)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    "name",
    [
        "torchvision:resnet18", "torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1", "torchvision:googlenet",
        "torchvision:vit_b_32", "timm:resnet18", "timm:vit_tiny_patch16_224", "timm:convnext_atto", "timm:resnet18.a1_in1k",
    ],
)  # fmt: skip
def test_external_networks_take_any_channels_and_classes(name: str, channels: int) -> None:
    model = build(name, channels)
    x = torch.randn(2, channels, 64, 64)
    with torch.no_grad():
        assert model.eval()(x).shape == (2, 5)


def test_an_unsuitable_size_names_a_suitable_one() -> None:
    with pytest.raises(CnnlabError, match=r"timm:vit_tiny_patch16_224: .*\b8x8\b") as caught:
        build("timm:vit_tiny_patch16_224", size=8)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(CnnlabError, match=r"torchvision:alexnet: .*\b28x28\b.*image_size=64\b"):
        build("torchvision:alexnet", size=28)
    assert accepts(build("torchvision:alexnet", size=64), 1, 64)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("torchvision:resnet81", r"torchvision.*'resnet81'.*resnet18\b"),
        ("timm:resnet81", r"timm.*'resnet81'.*resnet18\b"),
        ("torchvision:resnet18.IMAGENET", "torchvision:resnet18.*'IMAGENET'"),
        ("timm:resnet18.nothing_like_it", "timm:resnet18.*'nothing_like_it'"),
        ("keras:resnet18", "'keras'"),
        ("timm:", "timm.*''"),
    ],
)
def test_unknown_names_are_one_line(cnnlab: Command, name: str, says: str) -> None:
    assert re.search(says, one_line_error(cnnlab("show", name)))


def test_without_timm_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def import_without_timm(name: str, *args: object, **kwargs: object) -> object:
        if name == "timm":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(builtins, "__import__", import_without_timm)
    with pytest.raises(CnnlabError, match=r"pip install 'cnnlab\[timm\]'"):
        build("timm:resnet18")


Downloaded = Callable[[str, dict[str, Tensor]], Path]


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Downloaded:
    """A function that puts weights into a temporary cache, as if torchvision had downloaded them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    def put(name: str, state: dict[str, Tensor]) -> Path:
        url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
        path = folder / url.rpartition("/")[2]
        torch.save(state, path)
        return path

    return put


@pytest.fixture
def hub(downloaded: Downloaded) -> Path:
    """The temporary cache's folder, with a ResNet-18."""
    torch.manual_seed(7)
    return downloaded("resnet18", torchvision.models.resnet18(weights=None).state_dict()).parent


def test_published_weights_are_loaded_where_they_fit(hub: Path) -> None:
    state = torch.load(next(hub.iterdir()), weights_only=True)
    colour = build("torchvision:resnet18.IMAGENET1K_V1", channels=3, published=True)
    own = colour.state_dict()
    assert own["fc.weight"].shape == (5, 512)  # the head is new, for our classes
    for key, value in state.items():
        if not key.startswith("fc."):
            assert torch.equal(own[key], value), key
    grey = build("torchvision:resnet18.DEFAULT", channels=1, published=True)
    x = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(grey.conv1(x), colour.conv1(x.expand(2, 3, 64, 64)))  # type: ignore[operator]
    assert torch.equal(grey.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])  # type: ignore[index,union-attr]
    # Nothing is loaded without a tag, nor for an evaluation (published=False).
    for name, published in (("torchvision:resnet18", True), ("torchvision:resnet18.IMAGENET1K_V1", False)):
        assert not torch.equal(build(name, channels=3, published=published).conv1.weight, state["conv1.weight"])  # type: ignore[arg-type]


def test_an_older_layout_of_weights_is_loaded_completely(downloaded: Downloaded) -> None:
    """torchvision's file of DenseNet-121 predates batch norm's batch counter, and names some layers differently."""
    torch.manual_seed(7)
    theirs = torchvision.models.densenet121(weights=None)
    state = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value
        for key, value in theirs.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    downloaded("densenet121", state)
    ours = build("torchvision:densenet121.IMAGENET1K_V1", channels=3, published=True).state_dict()
    for key, value in theirs.state_dict().items():
        if not key.startswith("classifier"):
            assert torch.equal(ours[key], value), key


def test_weights_for_another_image_size_are_refused_with_the_size(downloaded: Downloaded) -> None:
    downloaded("vit_b_32", torchvision.models.vit_b_32(weights=None).state_dict())
    with pytest.raises(CnnlabError, match=r"encoder\.pos_embedding.*image_size=224"):
        build("torchvision:vit_b_32.IMAGENET1K_V1", channels=3, published=True)
    build("torchvision:vit_b_32.IMAGENET1K_V1", channels=3, size=224, published=True)


def test_a_failed_download_starts_no_run(quick: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(CnnlabError, match=r"torchvision:resnet18\.DEFAULT.*efficientnet-lite0\.in1k"):
        train(quick.changed(model="torchvision:resnet18.DEFAULT", image_size=32), progress="none")
    assert not (tmp_path / "runs").exists()


def test_training_starts_from_published_weights_and_loading_the_run_needs_none(hub: Path, quick: Recipe) -> None:
    recipe = quick.changed(
        model="torchvision:resnet18.IMAGENET1K_V1",
        image_size=32,
        epochs=1,
        learning_rate=0.0,
        schedule="constant",
        limit=40,
    )
    run = train(recipe, progress="none").run
    state = torch.load(next(hub.iterdir()), weights_only=True)
    next(hub.iterdir()).unlink()
    model = load_model(run, weights="last").network
    assert torch.equal(model.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])  # type: ignore[index,union-attr]
    assert open_run(run.path).recipe.model == "torchvision:resnet18.IMAGENET1K_V1"
    assert len(resume(run.path, epochs=2, progress="none").history) == 2  # type: ignore[union-attr]


def test_a_pickle_that_runs_code_is_refused(hub: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, (f"open({str(tmp_path / 'pwned')!r}, 'w')",))

    torch.save({"x": Hostile()}, next(hub.iterdir()))
    with pytest.raises(CnnlabError, match=r"torchvision:resnet18\.IMAGENET1K_V1.*efficientnet-lite0\.in1k"):
        build("torchvision:resnet18.IMAGENET1K_V1", channels=3, published=True)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["timm:resnet18.a1_in1k", "torchvision:resnet18.IMAGENET1K_V1"])
def test_without_internet_the_error_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # otherwise it retries for a minute
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # no server listens there
    with pytest.raises(CnnlabError, match=rf"{re.escape(name)}.*efficientnet-lite0\.in1k") as caught:
        build(name, channels=3, published=True)
    assert "\n" not in str(caught.value)
    assert "tag" in str(caught.value)  # the remedy: a name without its tag starts from random weights


@pytest.mark.parametrize(("name", "network"), [("googlenet", GoogLeNet), ("inception_v3", Inception3)])
def test_normalization_matches_torchvisions_input_transform(name: str, network: Any) -> None:
    expected = published_weights(f"torchvision:{name}.DEFAULT")
    assert expected is not None
    x = torch.rand(2, 3, 4, 4)
    preset = get_model_weights(name)["DEFAULT"].transforms()
    theirs = network._transform_input(SimpleNamespace(transform_input=True), normalize(x, preset.mean, preset.std))
    torch.testing.assert_close(normalize(x, expected.mean, expected.std), theirs)


def test_xavier_init_with_published_weights_is_refused(cnnlab: Command) -> None:
    answer = cnnlab("train", "torchvision:resnet18.DEFAULT", "--set", "init=xavier-uniform")
    assert "init=xavier-uniform" in one_line_error(answer)


def test_the_commands_accept_external_names(cnnlab: Command) -> None:
    trained = cnnlab(
        "train", "torchvision:squeezenet1_1", "--name", "s", "--set", "epochs=1", "--set", "image_size=32", "--set",
        "limit=60",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert cnnlab("eval", "s").returncode == 0
    shown = cnnlab("show", "torchvision:squeezenet1_1", "--image-size", 64)
    assert shown.returncode == 0, shown.stderr
    expected = sum(p.numel() for p in build("torchvision:squeezenet1_1", classes=10).parameters())
    assert f"{expected:,} parameters" in shown.stdout.splitlines()[0]
    assert "timm:NAME" in cnnlab("list", "models").stdout
