"""`cnnlab show` and `summarize`, against torchvision's published counts and the actual dependence on pixels."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from cnnlab.inspect.summary import summarize
from cnnlab.io.errors import CnnlabError
from cnnlab.models import MODELS, build_model
from conftest import Command, one_line_error


@pytest.mark.parametrize("name", ["vgg11", "vgg19", "resnet18", "resnet50", "resnet152", "densenet121", "densenet201"])
def test_counts_match_those_published_by_torchvision(name: str) -> None:
    published = torchvision.models.get_model_weights(name).DEFAULT.meta
    summary = summarize(name, image_size=224, in_channels=3, num_classes=1000)
    assert summary.parameters == published["num_params"]
    assert round(summary.multiply_adds / 1e9, 2) == pytest.approx(published["_ops"], abs=0.011)


# A. Araujo, W. Norris, J. Sim, Computing receptive fields of convolutional neural networks, Distill 2019
@pytest.mark.parametrize(("name", "pixels"), [("alexnet", 195), ("vgg16", 212), ("densenet121", 2071)])
def test_receptive_fields_match_the_published_ones(name: str, pixels: int) -> None:
    """The receptive field of the last layer with more than one position."""
    spatial = [row for row in summarize(name, depth=0).layers if len(row.output) == 3 and row.output[-1] > 1]
    assert spatial[-1].receptive_field == pixels


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "timm:convnext_atto", "torchvision:shufflenet_v2_x0_5"])
def test_an_unknown_receptive_field_is_left_empty(name: str, cnnlab: Command) -> None:
    summary = summarize(name)
    assert summary.receptive_field is None
    assert cnnlab("show", name).stdout.splitlines()[-3].split()[-1] == f"{summary.multiply_adds:,}"


def test_flattening_keeps_the_receptive_field_and_a_linear_layer_widens_it() -> None:
    fields = {row.type: row.receptive_field for row in summarize("lenet").layers[5:8]}
    assert fields == {"AvgPool2d": 16, "Flatten": 16, "Linear": 16 + 4 * 4}  # 5x5 positions, 4 pixels apart


def rows_a_value_depends_on(model: nn.Module, size: int, layer: str) -> int:
    """Return how many rows of pixels the middle value of a layer depends on: those from which a NaN reaches it."""
    found: dict[str, torch.Tensor] = {}
    model.get_submodule(layer).register_forward_hook(lambda _m, _i, output: found.update(y=output))
    assert isinstance(model, nn.Sequential)
    x = torch.rand(size, 1, size, size)
    x[torch.arange(size), :, torch.arange(size)] = float("nan")  # row i of image i is NaN
    with torch.no_grad():
        model[: int(layer.partition(".")[0]) + 1](x)
    middle = found["y"].shape[-1] // 2
    rows = found["y"][:, :, middle, middle].isnan().any(1).nonzero().flatten()
    return int(rows.max() - rows.min() + 1)


@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("lenet", 28, ["0", "2", "3", "5"]),
        ("alexnet", 96, ["0", "2", "3"]),
        ("nin", 96, ["0", "1", "2"]),
        ("googlenet", 80, ["0", "1", "2.0"]),
        ("resnet18", 64, ["0", "1.0", "1.1", "2.0"]),
        ("resnet50", 64, ["1.0", "1.2"]),
        ("densenet", 64, ["0", "1"]),
    ],
)
def test_receptive_fields_match_the_pixels_a_value_depends_on(name: str, size: int, layers: list[str]) -> None:
    rows = {row.path: row for row in summarize(name, image_size=size, depth=0).layers}
    torch.manual_seed(0)
    model = build_model(name, num_classes=10, in_channels=1, image_size=size).eval()
    for layer in layers:
        assert rows_a_value_depends_on(model, size, layer) == min(rows[layer].receptive_field, size), layer


# The networks left out differ from these only in depth and width.
@pytest.mark.parametrize("name", [n for n in MODELS if not re.search("34|101|152|169|201|vgg1[36]|vgg19", n)])
def test_every_network_table_adds_up(name: str) -> None:
    summary = summarize(name)
    _, size, _ = summary.input
    with torch.device("meta"):
        model = build_model(name, num_classes=10, in_channels=1, image_size=size)
    assert summary.parameters == sum(p.numel() for p in model.parameters()) == sum(r.parameters for r in summary.layers)
    assert summary.multiply_adds == sum(r.multiply_adds for r in summary.layers) > 0
    assert [r.path for r in summary.layers] == [n for n, _ in model.named_children()]
    leaves = summarize(name, depth=0)
    owners = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
    counted = [r for r in leaves.layers if r.type in {type(m).__name__ for m in owners}]
    assert sum(r.parameters for r in counted) == summary.parameters
    # receptive fields never shrink from layer to layer
    fields = [r.receptive_field for r in summary.layers]
    assert fields == sorted(fields)


def test_a_module_that_reads_values_is_one_line() -> None:
    class Reads(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.sum().item()

    for net, channels in ((Reads(), 1), (nn.Conv2d(3, 4, 3), 1)):
        with pytest.raises(CnnlabError):
            summarize(net, image_size=8, in_channels=channels)


def test_a_users_module_is_not_changed() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, dilation=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    before = {k: v.clone() for k, v in net.state_dict().items()}
    summary = summarize(net, image_size=20, in_channels=3)
    assert [r.receptive_field for r in summary.layers] == [5, 5, 20, 20, 20]
    assert summary.layers[0].multiply_adds == 16 * 16 * 4 * 3 * 9
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())


def test_show_prints_the_manuals_rows(cnnlab: Command) -> None:
    answer = cnnlab("show", "alexnet")
    assert answer.returncode == 0, answer.stderr
    title, _, rest = answer.stdout.partition("\n\n")
    assert " ".join(title.split()).startswith(
        "alexnet, one image of 1 x 224 x 224: 46,764,746 parameters, 938.1 million multiply-adds"
    )
    lines = ["", "", *rest.splitlines()]
    golden = (Path(__file__).parents[1] / "golden" / "alexnet.txt").read_text().splitlines()[1:]
    printed = [line.split()[1:] for line in lines[3:-3]]
    for row, expected in zip(printed, golden, strict=True):
        kind, _, shape = expected.partition(" output shape: torch.Size([1, ")
        assert row[0] == kind
        assert " x ".join(shape.rstrip("])").split(", ")) in " ".join(row[1:])


def test_show_as_json_and_markdown(cnnlab: Command) -> None:
    found = json.loads(cnnlab("show", "resnet18", "--image-size", 96, "--format", "json").stdout)
    assert found["input"] == [1, 96, 96]
    assert found["layers"][-1] == {
        "path": "7", "type": "Linear", "output": [10], "parameters": 5130, "multiply_adds": 5120, "receptive_field": 499,
    }  # fmt: skip
    page = cnnlab("show", "nin", "--format", "markdown", "--depth", 2).stdout.splitlines()
    assert page[2] == "| layer | type | output | parameters | multiply-adds | receptive field |"
    assert all(line.count("|") == 7 for line in page[2:])
    assert any(line.startswith("| 0.0 | Conv2d | 96 x 54 x 54 |") for line in page)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["alexnet", "--image-size", "32"], "alexnet: .*65x65.*32x32"),
        (["alexnett"], r"'alexnett'.*alexnet\b"),
        (["lenet", "--channels", "0"], "channels=0"),
        (["lenet", "--image-size", "0"], "image_size=0"),
        (["lenet", "--depth", "-1"], "depth=-1"),
        (["lenet", "--format", "html"], "'html'"),
    ],
)
def test_show_refuses_in_one_line(cnnlab: Command, arguments: list[str], says: str) -> None:
    assert re.search(says, one_line_error(cnnlab("show", *arguments)))
