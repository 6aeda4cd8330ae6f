"""Class activation maps: against captum and the definition of CAM, and the automatic choice of the layer."""

from __future__ import annotations

import re

import captum.attr as reference
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from cnnlab import CnnlabError, build_model
from cnnlab.inspect.activation import class_activation
from cnnlab.inspect.layers import activation_layer, feature_maps, stages
from cnnlab.models import MODELS, default_image_size

CLASSES = torch.tensor([3, 7])


def seeded_network(name: str, size: int, in_channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, image_size=size, in_channels=in_channels).eval()


def scale_to_one(cam: Tensor) -> Tensor:
    return cam / cam.amax((1, 2), keepdim=True).clamp_min(1e-30)


def captum_map(model: nn.Module, x: Tensor, classes: Tensor, layer: str) -> Tensor:
    maps = reference.LayerGradCam(model, model.get_submodule(layer)).attribute(x, classes, relu_attributions=True)
    return scale_to_one(reference.LayerAttribution.interpolate(maps, x.shape[2:], "bilinear")[:, 0].detach())


@pytest.mark.parametrize("name", ["resnet18", "alexnet"])
def test_the_map_matches_captum(name: str) -> None:
    model = seeded_network(name, 80, 3)
    x = torch.rand(2, 3, 80, 80)
    expected = captum_map(model, x, CLASSES, activation_layer(model, x).path)
    assert expected.amax((1, 2)).tolist() == [1, 1]
    torch.testing.assert_close(class_activation(model, x, CLASSES), expected, atol=1e-5, rtol=1e-5)


def test_the_map_matches_cam_after_global_pooling_and_a_linear_layer() -> None:
    model = seeded_network("resnet18-small", 28)
    x = torch.rand(2, 1, 28, 28)
    (maps,) = feature_maps(model, x, [activation_layer(model, x)])  # (2, 128, 4, 4)
    weight = next(p for p in reversed(list(model.parameters())) if p.ndim == 2)  # (10, 128)
    cam = torch.einsum("bc,bchw->bhw", weight.detach()[CLASSES], maps).relu()[:, None]
    cam = F.interpolate(cam, size=(28, 28), mode="bilinear")[:, 0]
    torch.testing.assert_close(class_activation(model, x, CLASSES), scale_to_one(cam), atol=1e-5, rtol=1e-5)


# The deepest networks differ from their siblings only in the number of blocks.
@pytest.mark.parametrize("name", [n for n in MODELS if not re.search("1(01|52|69)|201", n)])
def test_every_network_has_a_layer_for_the_map(name: str) -> None:
    size = default_image_size(name)
    with torch.device("meta"):
        model, x = build_model(name, in_channels=3, image_size=size), torch.zeros(1, 3, size, size)
    layer = activation_layer(model, x)
    # The last layer with several positions: one more convolution or pooling would leave one or none.
    assert 2 <= layer.height == layer.width <= (13 if size > 32 else 5)


@pytest.mark.parametrize(
    ("name", "size"),
    [("lenet", 28), ("lenet-bn-scratch", 20), ("alexnet-small", 28), ("vgg11-small", 32), ("nin-small", 28), ("nin", 67),
     ("googlenet-small", 28), ("airbench-small", 28), ("airbench96", 32), ("densenet", 32), ("efficientnet-lite0", 32),
     ("resnet18-cifar", 32)],
)  # fmt: skip
def test_the_map_is_finite_and_the_network_is_unchanged(name: str, size: int) -> None:
    model = seeded_network(name, size).train()
    model.get_submodule("0").eval()  # like frozen batch norm
    modes = [m.training for m in model.modules()]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    x = torch.rand(2, 1, size, size)
    kept = x.clone()
    with torch.inference_mode():
        cam = class_activation(model, x, CLASSES)
    assert cam.shape == (2, size, size)
    assert cam.isfinite().all()
    assert cam.min() >= 0
    assert all(m == pytest.approx(1) or m == 0 for m in cam.amax((1, 2)).tolist())
    assert torch.equal(x, kept)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


class Tutorial(nn.Module):
    """A network as in many tutorials: a pooling layer used twice, ReLU as a function, once in place."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.pool, self.fc, self.fails = nn.MaxPool2d(2), nn.Linear(16 * 5 * 5, 10), fails

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = F.relu(self.pool(self.conv2(x)), inplace=True)
        if self.fails:
            raise ValueError("out of order")
        out: Tensor = self.fc(x.flatten(1))
        return out


def test_a_module_called_twice_and_in_place_changes_are_handled() -> None:
    torch.manual_seed(0)
    model, x = Tutorial(), torch.rand(2, 3, 32, 32)
    layer = activation_layer(model, x)
    assert (layer.path, layer.call, layer.channels, layer.height) == ("pool", 2, 16, 5)
    for k in range(10):
        classes = torch.tensor([k, 9 - k])
        expected = captum_map(model, x, classes, "conv2")
        torch.testing.assert_close(class_activation(model, x, classes, "conv2"), expected, atol=1e-5, rtol=1e-5)
        assert class_activation(model, x, classes).shape == (2, 32, 32)
    assert [(s.path, s.call, s.height) for s in stages(model, x)] == [("conv1", 1, 28), ("pool", 1, 14), ("conv2", 1, 10),
                                                                      ("pool", 2, 5)]  # fmt: skip
    maps = feature_maps(model, x, stages(model, x))
    assert [tuple(m.shape) for m in maps] == [(2, 6, 28, 28), (2, 6, 14, 14), (2, 16, 10, 10), (2, 16, 5, 5)]
    assert torch.equal(maps[0], model.conv1(x).detach())
    assert maps[3].min() < 0  # the values before the in-place function


def test_hooks_are_removed_if_the_forward_pass_fails() -> None:
    model = Tutorial(fails=True).train()
    for call in (activation_layer, stages, lambda m, x: class_activation(m, x, CLASSES)):
        with pytest.raises(ValueError, match="out of order"):
            call(model, torch.rand(2, 3, 32, 32))
    assert not any(m._forward_hooks for m in model.modules())
    assert all(m.training for m in model.modules())
    assert torch.is_grad_enabled()


def test_networks_without_a_map_are_errors() -> None:
    x = torch.rand(2, 1, 28, 28)
    plain = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(784, 10))
    with pytest.raises(CnnlabError, match="Sequential.*positions"):
        class_activation(plain, x, CLASSES)
    assert stages(plain, x) == []
    with torch.device("meta"):
        vit, images = torchvision.models.get_model("vit_b_16"), torch.zeros(1, 3, 224, 224)
    with pytest.raises(CnnlabError, match="tokens"):
        activation_layer(vit, images)
    lenet = seeded_network("lenet", 28)
    with pytest.raises(CnnlabError, match="'77'"):
        activation_layer(lenet, x, "77")
    with pytest.raises(CnnlabError, match="'7'.*positions"):
        activation_layer(lenet, x, "7")
    with torch.no_grad():
        next(lenet.parameters()).fill_(float("nan"))
    with pytest.raises(CnnlabError, match="NaN"):
        class_activation(lenet, x, CLASSES)


@pytest.mark.parametrize(("name", "layer"), [("vgg11", "features"), ("swin_t", "permute"), ("resnet18", "layer4")])
def test_torchvision_networks_have_a_layer_for_the_map(name: str, layer: str) -> None:
    with torch.device("meta"):
        model, x = torchvision.models.get_model(name), torch.zeros(1, 3, 224, 224)
    assert activation_layer(model, x).path == layer


def test_a_timm_transformer_that_starts_with_convolutions_has_no_map() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model, x = timm.create_model("levit_128"), torch.zeros(1, 3, 224, 224)
    with pytest.raises(CnnlabError, match="tokens"):
        activation_layer(model, x)


class ChannelsLast(nn.Module):
    """A network whose last feature maps are (B, H, W, C), like a Swin transformer's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.head = nn.Conv2d(1, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.last(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))
        return out


def test_channels_last_feature_maps_are_supported() -> None:
    torch.manual_seed(0)
    model, x = ChannelsLast(), torch.rand(2, 1, 28, 28)
    layer = activation_layer(model, x)
    assert (layer.path, layer.channels_last, layer.channels, layer.height) == ("last", True, 8, 7)
    (maps,) = feature_maps(model, x, [layer])
    assert maps.shape == (2, 8, 7, 7)
    cam = torch.einsum("bc,bchw->bhw", model.head.weight.detach()[CLASSES], maps).relu()[:, None]
    cam = scale_to_one(F.interpolate(cam, size=(28, 28), mode="bilinear")[:, 0])
    torch.testing.assert_close(class_activation(model, x, CLASSES), cam, atol=1e-5, rtol=1e-5)
