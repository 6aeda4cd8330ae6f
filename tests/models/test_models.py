"""Each network against the manual's numbers and against an independent computation."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from cnnlab.device import fast_layers
from cnnlab.device.fast_layers import (
    Aligned,
    AlignedWhitening,
    BatchNorm2d,
    Conv2d,
    Linear,
    Phased,
    folded,
    quickened,
    quickened_for_gpu,
)
from cnnlab.io.errors import CnnlabError
from cnnlab.models import MODELS, build_model
from cnnlab.models.airbench import Head, _first_largest
from cnnlab.models.batch_norm import BatchNorm, batch_norm
from cnnlab.models.densenet import DenseBlock
from cnnlab.models.googlenet import Inception
from cnnlab.models.layers import AvgPool2d, side_after
from cnnlab.models.nin import nin_block
from cnnlab.models.resnet import Residual
from cnnlab.models.vgg import vgg
from cnnlab.training.optim import initialize

# One grey image size per network at which its table is printed, and the count of parameters there for ten classes.
MANUAL = {
    "lenet": (28, 61_706),
    "lenet-bn": (28, 44_878),
    "lenet-bn-scratch": (28, 44_878),
    "alexnet": (224, 46_764_746),
    "vgg11": (224, 128_806_154),
    "vgg11-quarter": (224, 43_093_322),
    "nin": (224, 1_992_166),
    "googlenet": (96, 5_977_530),
    "resnet18-manual": (224, 11_178_378),
    "densenet": (96, 758_226),
}
GOLDEN = Path(__file__).parents[1] / "golden"
needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch was built without oneDNN"
)
every_model = pytest.mark.parametrize("name", MODELS)


def make(name: str, channels: int = 1, classes: int = 10, size: int = 28) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, num_classes=classes, in_channels=channels, image_size=size)


def small(name: str) -> int:
    """A size at which two cores can train the network in a test: the smallest that works, 28 at least."""
    with torch.device("meta"), pytest.raises(CnnlabError) as caught:
        make(name, size=0)
    return max(28, int(re.findall(r"at least (\d+)x", str(caught.value))[0]))


# The manual's numbers


@pytest.mark.parametrize("name", MANUAL)
def test_parameter_count_is_the_manuals(name: str) -> None:
    size, count = MANUAL[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in make(name, size=size).parameters()) == count


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.txt")), ids=lambda p: p.stem)
def test_shapes_are_the_manuals_line_for_line(path: Path) -> None:
    head, *lines = path.read_text().splitlines()
    size = int(re.findall(r"at (\d+) pixels", head)[0])
    assert size == MANUAL[path.stem][0]
    with torch.device("meta"):
        model, x = make(path.stem, size=size).eval(), torch.zeros(1, 1, size, size)
    assert isinstance(model, nn.Sequential)
    found = []
    for layer in model:
        x = layer(x)
        found.append(f"{type(layer).__name__} output shape: {x.shape}")  # as the manual prints it
    assert found == lines


def test_every_network_with_a_printed_table_is_compared() -> None:
    assert {p.stem for p in GOLDEN.glob("*.txt")} == MANUAL.keys() - {"vgg11-quarter"}


def test_the_manuals_demonstrations_of_blocks() -> None:
    assert Residual(3, 3, manual=True)(torch.rand(4, 3, 6, 6)).shape == (4, 3, 6, 6)
    assert Residual(3, 6, 2, manual=True)(torch.rand(4, 3, 6, 6)).shape == (4, 6, 3, 3)
    assert Inception(192, 64, (96, 128), (16, 32), 32)(torch.rand(2, 192, 5, 5)).shape == (2, 256, 5, 5)
    assert DenseBlock(2, 3, 10)(torch.rand(4, 3, 8, 8)).shape == (4, 23, 8, 8)
    assert nin_block(1, 96, 11, 4, 0)(torch.rand(1, 1, 224, 224)).shape == (1, 96, 54, 54)


# Against torchvision's own networks, with its weights copied in

ORACLES = [
    "vgg11", "vgg13", "vgg16", "vgg19", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "densenet121",
    "densenet169", "densenet201",
]  # fmt: skip


def pair(name: str, size: int) -> tuple[nn.Module, nn.Module]:
    """torchvision's network and ours with the same weights, in float64; both list them in the order of the layers."""
    theirs = torchvision.models.get_model(name, weights=None, num_classes=7).double()
    ours = make(name, 3, 7, size).double()
    source, target = theirs.state_dict(), ours.state_dict()
    assert [v.shape for v in source.values()] == [v.shape for v in target.values()]
    ours.load_state_dict(dict(zip(target, source.values(), strict=True)))
    return theirs, ours


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach(), expected.detach()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


@pytest.mark.parametrize("name", ORACLES)
def test_equals_torchvision_with_its_weights(name: str) -> None:
    # torchvision's VGG pools to 7x7, which does nothing at 224 pixels and is another network elsewhere.
    size, batch = (224, 1) if name.startswith("vgg") else (64, 2)
    theirs, ours = pair(name, size)
    x, y = torch.randn(batch, 3, size, size, dtype=torch.float64), torch.arange(batch)
    # Batch statistics and running ones; VGG has neither.
    for training in (False,) if name.startswith("vgg") else (True, False):
        theirs.train(training), ours.train(training)
        for module in (*theirs.modules(), *ours.modules()):
            if isinstance(module, nn.Dropout):
                module.eval()  # what is dropped is random
        expected, found = theirs(x), ours(x)
        assert relative(found, expected) < 1e-10
        theirs.zero_grad(), ours.zero_grad()
        F.cross_entropy(expected, y).backward()
        F.cross_entropy(found, y).backward()
        for (path, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            assert relative(p.grad, q.grad) < 1e-10 or (p.grad - q.grad).abs().max() < 1e-14, path
    if not name.startswith("vgg"):
        for p, q in zip(ours.buffers(), theirs.buffers(), strict=True):
            assert relative(p.double(), q.double()) < 1e-10


def test_the_manuals_resnet_differs_from_the_papers_in_biases_and_projections_only() -> None:
    paper, manual = make("resnet18", size=64).double(), make("resnet18-manual", size=64).double()
    extra = {k.rpartition(".")[0] + " bias" for k in manual.state_dict() if k not in paper.state_dict() and "bias" in k}
    assert len(extra) == 20  # 17 convolutions in blocks and stem, 3 projections
    # With those biases 0 and the paper's projection norms doing nothing, the two are one network.
    state = manual.state_dict()
    for key, value in paper.state_dict().items():
        if key in state:
            state[key] = value
        elif key.endswith("shortcut.0.weight"):
            state[key.replace("shortcut.0", "shortcut")] = value
    manual.load_state_dict({k: torch.zeros_like(v) if k not in paper.state_dict() and k.endswith("bias") else v
                            for k, v in state.items()})  # fmt: skip
    x = torch.randn(2, 1, 64, 64, dtype=torch.float64)
    # fresh running statistics: dividing by sqrt(1 + eps) is all that the projection's norm does
    torch.testing.assert_close(manual.eval()(x), paper.eval()(x), rtol=1e-3, atol=1e-4)


# Batch normalisation from scratch, against torch's layer


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_batch_norm_from_scratch_equals_torchs(data: st.DataObject) -> None:
    batch, channels = data.draw(st.integers(2, 9)), data.draw(st.integers(1, 7))
    shape: tuple[int, ...] = (batch, channels)
    if data.draw(st.booleans(), "four dimensions"):
        shape = (batch, channels, data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6)))
    eps, momentum = data.draw(st.sampled_from([1e-5, 1e-3])), data.draw(st.sampled_from([0.9, 0.5, 0.99]))
    torch.manual_seed(data.draw(st.integers(0, 2**20), "seed"))
    scale, offset = data.draw(st.sampled_from([1e-2, 1.0, 30.0])), data.draw(st.sampled_from([-5.0, 0.0, 2.0]))
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    theirs = kind(channels, eps=eps, momentum=1 - momentum).double()
    ours = BatchNorm(channels, eps=eps, momentum=momentum).double()
    with torch.no_grad():
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.copy_(q.copy_(torch.randn(channels)))
    for _ in range(3):  # running statistics over several batches
        x = torch.randn(shape, dtype=torch.float64) * scale + offset
        x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
        y1, y2 = ours(x1), theirs(x2)
        weight = torch.randn(shape, dtype=torch.float64)
        (y1 * weight).sum().backward()
        (y2 * weight).sum().backward()
        torch.testing.assert_close(y1, y2, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(x1.grad, x2.grad, rtol=1e-7, atol=1e-9 / min(scale, 1))
        assert theirs.running_mean is not None
        assert theirs.running_var is not None
        torch.testing.assert_close(ours.moving_mean, theirs.running_mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ours.moving_var, theirs.running_var, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(ours.gamma.grad, theirs.weight.grad, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours.beta.grad, theirs.bias.grad, rtol=1e-8, atol=1e-8)
    ours.eval(), theirs.eval()
    x = torch.randn(shape, dtype=torch.float64) * scale
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)
    before = ours.moving_mean.clone()
    with torch.enable_grad():  # gradient mode does not switch it, train and eval do
        ours(x.requires_grad_())
    assert torch.equal(before, ours.moving_mean)


@given(
    shape=st.tuples(*(st.integers(2, 9) for _ in range(4))),
    kernel=st.sampled_from([2, 3]),
    stride=st.sampled_from([2, 1]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_average_pooling_equals_torchs(
    shape: tuple[int, int, int, int], kernel: int, stride: int, memory_format: torch.memory_format
) -> None:
    """Values and gradients, odd sides included, of which the last row and column are left out."""
    assume(min(shape[2:]) >= kernel)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(memory_format=memory_format)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, told = AvgPool2d(kernel, stride)(ours), nn.AvgPool2d(kernel, stride)(theirs)
    torch.testing.assert_close(found, told)
    weight = torch.randn(told.shape, generator=torch.Generator().manual_seed(1))
    (found * weight).sum().backward()
    (told * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@given(
    shape=st.tuples(st.integers(1, 3), st.sampled_from([2, 4]), st.integers(9, 13), st.integers(9, 13)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.integers(1, 2),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    first=st.booleans(),
    turned=st.booleans(),
    rows=st.booleans(),
)
def test_convolution_is_the_frameworks(
    shape: tuple[int, ...],
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    memory_format: torch.memory_format,
    first: bool,
    turned: bool,
    rows: bool,
) -> None:
    ours = Conv2d(shape[1], 4, (5, 4), stride, padding, dilation, groups)
    ours.turned, ours.rows = turned, rows
    theirs = nn.Conv2d(shape[1], 4, (5, 4), stride, padding, dilation, groups)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(memory_format=memory_format)
    inputs = [x.clone().requires_grad_(not first) for _ in range(2)]  # a first layer's images need no gradient
    found, told = ours(inputs[0]), theirs(inputs[1])
    torch.testing.assert_close(found, told)
    weight = torch.randn(told.shape, generator=torch.Generator().manual_seed(1))
    (found * weight).sum().backward()
    (told * weight).sum().backward()
    for one, other in zip((inputs[0], *ours.parameters()), (inputs[1], *theirs.parameters()), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [(5, 5), (4, 6)])
@pytest.mark.parametrize("padding", [(0, 0), (2, 1), (3, 4)])
@pytest.mark.parametrize("channels", [4, 6, 8])
def test_the_gradient_of_images_by_pairs_of_rows_is_the_frameworks(
    kernel: tuple[int, int], padding: tuple[int, int], channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    monkeypatch.setattr(
        fast_layers, "_by_rows", lambda *told, by_rows=fast_layers._by_rows: used.append(1) or by_rows(*told)
    )
    ours, theirs = Conv2d(channels, 16, kernel, padding=padding), nn.Conv2d(channels, 16, kernel, padding=padding)
    theirs.load_state_dict(ours.state_dict())
    ours.rows = True
    for side in (12, 13, 6, 7):  # an odd number of rows has no pairs
        x = torch.randn((3, channels, side, 11), generator=torch.Generator().manual_seed(side))
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        told = theirs(inputs[1])
        weight = torch.randn(told.shape, generator=torch.Generator().manual_seed(1))
        (ours(inputs[0]) * weight).sum().backward()
        (told * weight).sum().backward()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-4)
    assert len(used) == 2


@given(
    shape=st.tuples(st.integers(2, 5), *(st.integers(1, 7) for _ in range(3))),
    offset=st.sampled_from([0.0, 3.0, 1000.0]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    first=st.booleans(),
)
def test_quickened_batch_norm_is_the_frameworks(
    shape: tuple[int, int, int, int], offset: float, memory_format: torch.memory_format, first: bool
) -> None:
    """Also where a channel's mean is a thousand times its deviation."""
    ours, theirs = BatchNorm2d(shape[1], momentum=0.3), nn.BatchNorm2d(shape[1], momentum=0.3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.copy_(q.copy_(torch.randn(shape[1], generator=generator)))
    assume(shape[0] * shape[2] * shape[3] > 3)  # of two or three values the gradient is 0 but for rounding
    for _ in range(2):
        x = (torch.randn(shape, generator=generator) + offset).to(memory_format=memory_format)
        inputs = [x.clone().requires_grad_(not first) for _ in range(2)]
        found, told = ours(inputs[0]), theirs(inputs[1])
        tolerance = 1e-4 * max(1.0, offset / 10)  # of the images themselves: float32 at 1000 is a multiple of 6e-5
        torch.testing.assert_close(found, told, rtol=tolerance, atol=tolerance)
        weight = torch.randn(shape, generator=generator)
        (found * weight).sum().backward()
        (told * weight).sum().backward()
        for one, other in zip((inputs[0], *ours.parameters()), (inputs[1], *theirs.parameters()), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=10 * tolerance, atol=10 * tolerance)
        for one, other in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    x = torch.randn(shape, generator=generator)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4 * max(1.0, offset))


def test_batch_norm_from_scratch_takes_low_precision() -> None:
    ours, theirs = BatchNorm(3), nn.BatchNorm2d(3)
    x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    torch.testing.assert_close(ours(x).bfloat16(), theirs(x), rtol=0.05, atol=0.05)
    torch.testing.assert_close(ours.moving_mean, theirs.running_mean, rtol=0.02, atol=0.01)
    torch.testing.assert_close(ours.moving_var, theirs.running_var, rtol=0.02, atol=0.01)
    ours(x).float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_quickened_batch_norm_leaves_other_kinds_to_the_framework() -> None:
    x = torch.randn(4, 3, 5, 5)
    for how in ({"momentum": None}, {"affine": False}, {"track_running_stats": False}):
        found, told = BatchNorm2d(3, **how), nn.BatchNorm2d(3, **how)
        assert torch.equal(found(x), told(x))
        assert all(torch.equal(p, q) for p, q in zip(found.buffers(), told.buffers(), strict=True))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        BatchNorm2d(3)(x[:1, :, :1, :1])
    with pytest.raises(ValueError, match="4D"):
        BatchNorm2d(3)(x[0])


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(4, 13), st.integers(4, 13)),
    maps=st.integers(1, 8),
    kernel=st.sampled_from([5, (6, 5)]),
    padding=st.sampled_from([0, 2, (1, 2)]),
    norm=st.sampled_from([nn.BatchNorm2d, BatchNorm, None]),
    after=st.sampled_from([[nn.Sigmoid()], [nn.Sigmoid()], [nn.Tanh()], [nn.ReLU(), nn.Sigmoid()], []]),
    first=st.booleans(),
    turned=st.booleans(),
)
def test_a_convolution_and_its_pooling_by_phases_are_the_frameworks(
    shape: tuple[int, int, int, int],
    maps: int,
    kernel: int,
    padding: int,
    norm: type[nn.Module] | None,
    after: list[nn.Module],
    first: bool,
    turned: bool,
) -> None:
    def chain() -> nn.Sequential:
        torch.manual_seed(0)
        middle = after if norm is None else [norm(maps, eps=0.1), *after]
        made = nn.Sequential(nn.ReLU(), nn.Conv2d(shape[1], maps, kernel, padding=padding), *middle, AvgPool2d(2, 2))
        for parameter in made.parameters():
            nn.init.normal_(parameter)
        return made

    ours, theirs = quickened(chain(), turned=turned), chain()
    assert type(ours) is Phased
    assert ours.turned is turned
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made = (theirs[1](x) if min(shape[2:]) + 2 * min(theirs[1].padding) >= 6 else x[..., :1, :1]).shape
    assume(min(made[2:]) > 1 and made[0] * made[2] * made[3] > 3)
    inputs = [x.clone().requires_grad_(not first) for _ in range(2)]
    found, told = ours(inputs[0]), theirs(inputs[1])
    at_once = norm is not None and [type(layer) for layer in after] == [nn.Sigmoid]
    by_phases = not (made[2] % 2 or made[3] % 2)
    name = "_NormedBackward" if at_once else "_JoinedBackward" if by_phases else "_HalvedBackward"
    assert found.grad_fn.name() == name
    torch.testing.assert_close(found, told, rtol=1e-4, atol=1e-4)
    weight = torch.randn(told.shape, generator=torch.Generator().manual_seed(1))
    (found * weight).sum().backward()
    (told * weight).sum().backward()
    for one, other in zip((inputs[0], *ours.parameters()), (inputs[1], *theirs.parameters()), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)
    for one, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)
    theirs.load_state_dict(ours.state_dict())  # running statistics of float32 are not alike to the digits of these
    torch.testing.assert_close(ours.double()(x.double()), theirs.double()(x.double()))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ours.float()(x), theirs.float()(x))


@pytest.mark.parametrize("name", ["lenet", "lenet-bn", "lenet-bn-scratch"])
def test_who_looks_at_a_layer_sees_it(name: str) -> None:
    """Layers that are computed as one are not called; those that something looks at are, and by themselves."""
    model, x = quickened(make(name)), torch.rand(2, 1, 28, 28)
    without = model(x)
    for layer in model:
        seen: list[torch.Size] = []
        for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
            handle = register(lambda _module, told, *answer, seen=seen: seen.append((*answer, *told)[0].shape))
            torch.testing.assert_close(model(x), without)
            handle.remove()
        assert len(seen) == 2


def _without_bias(norm: nn.BatchNorm2d) -> None:
    norm.register_parameter("bias", None)


def _following_no_more(norm: nn.BatchNorm2d) -> None:
    norm.track_running_stats = False


@pytest.mark.parametrize(
    ("how", "change"),
    [
        ({"momentum": None}, None),
        ({"affine": False}, None),
        ({"track_running_stats": False}, None),
        ({}, _without_bias),
        ({}, _following_no_more),
        ({}, nn.Module.eval),
        ({}, lambda norm: norm.requires_grad_(False)),
    ],
)
@pytest.mark.parametrize("side", [12, 13])
def test_other_batch_norms_in_a_chain_are_the_frameworks(
    how: dict[str, Any], change: Callable[[nn.BatchNorm2d], Any] | None, side: int
) -> None:
    """By phases, or on an odd side without them."""
    chains = []
    for _ in range(2):
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(6, **how)
        made = nn.Sequential(nn.Conv2d(1, 6, 5, padding=2), norm, nn.Sigmoid(), AvgPool2d(2))
        if change is not None:
            change(norm)
        chains.append(made)
    ours, theirs = quickened(chains[0]), chains[1]
    assert type(ours) is Phased
    for _ in range(2):
        x = torch.randn(3, 1, side, side)
        answers = [chain(x) for chain in (ours, theirs)]
        torch.testing.assert_close(*answers)
        for answer in answers:
            answer.square().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)
    for one, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["lenet", "lenet-bn", "lenet-bn-scratch"])
def test_a_graph_that_is_kept_gives_the_same_gradients_again(name: str) -> None:
    """Nothing that the backward pass reads is written by it."""
    model = quickened(make(name), rows=True)
    loss = model(torch.rand(4, 1, 28, 28)).square().sum()
    found = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for _ in range(2)]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["lenet", "lenet-bn", "lenet-bn-scratch"])
@pytest.mark.parametrize("how", [{"rows": True, "products": True}, {"turned": True}])
def test_quickened_lenets_train_as_the_frameworks(name: str, how: dict[str, bool]) -> None:
    """Some steps of the whole network; after many more, rounding would have grown."""
    models = quickened(make(name), **how), make(name)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.5) for model in models]
    for _ in range(4):
        x, y = torch.rand(32, 1, 28, 28), torch.randint(0, 10, (32,))
        losses = []
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            losses.append(F.cross_entropy(model(x), y))
            losses[-1].backward()
            optimizer.step()
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    for one, other in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(1, 4, 3), AvgPool2d(2)],
        [nn.Conv2d(4, 4, 5), AvgPool2d(2)],
        [nn.Conv2d(1, 16, 5), AvgPool2d(2)],
        [nn.Conv2d(1, 4, 5, stride=2), AvgPool2d(2)],
        [nn.Conv2d(1, 4, 5, padding="same"), AvgPool2d(2)],
        [nn.Conv2d(1, 4, 5, padding=2, padding_mode="circular"), AvgPool2d(2)],
        [nn.Conv2d(1, 4, 5, bias=False), AvgPool2d(2)],
        [nn.Conv2d(1, 4, 5), AvgPool2d(3, 2)],
        [nn.Conv2d(1, 4, 5), nn.MaxPool2d(2)],
        [nn.Conv2d(1, 4, 5), nn.Dropout(), AvgPool2d(2)],
        [nn.Conv2d(1, 4, 5), nn.Softmax(2), AvgPool2d(2)],
        [nn.Conv2d(1, 4, 5), nn.Sigmoid()],
        [nn.Conv2d(1, 4, 5)],
        [],
    ],
)
def test_other_chains_are_not_computed_by_phases(layers: list[nn.Module]) -> None:
    assert type(quickened(nn.Sequential(*layers))) is nn.Sequential


def test_both_lenets_are_trained_by_phases() -> None:
    for name, spans in (("lenet", {0: 2}), ("lenet-bn", {0: 3}), ("lenet-bn-scratch", {0: 3})):
        model = quickened(make(name))
        assert isinstance(model, Phased)
        assert model.spans == spans
        assert copy.deepcopy(model).spans == spans
        assert model[:2](torch.zeros(1, 1, 28, 28)).shape == make(name)[:2](torch.zeros(1, 1, 28, 28)).shape
        assert type(make(name)) is nn.Sequential
        # Channels-last, as which images of one channel are also contiguous: by the framework.
        x, last = torch.randn(16, 1, 28, 28), torch.channels_last
        expected = make(name)(x)
        for images, chain in ((x.clone(memory_format=last), model), (x, model.to(memory_format=last))):
            torch.testing.assert_close(chain(images), expected, rtol=1e-4, atol=1e-4)


@needs_onednn
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70)), bias=st.booleans(), first=st.booleans()
)
def test_quickened_linear_layers_are_the_frameworks(shape: tuple[int, int, int], bias: bool, first: bool) -> None:
    batch, inputs, outputs = shape
    ours, theirs = Linear(inputs, outputs, bias=bias), nn.Linear(inputs, outputs, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, inputs, generator=generator)
    given = [x.clone().requires_grad_(not first) for _ in range(2)]
    found, told = ours(given[0]), theirs(given[1])
    torch.testing.assert_close(found, told, rtol=1e-5, atol=1e-5)
    weight = torch.randn(batch, outputs, generator=generator)
    (found * weight).sum().backward()
    (told * weight).sum().backward()
    for one, other in zip((given[0], *ours.parameters()), (given[1], *theirs.parameters()), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)
    for p in ours.parameters():  # as where a network's first layers are trained alone
        p.requires_grad_(False)
    ours(x.requires_grad_()).sum().backward()
    torch.testing.assert_close(x.grad, ours.weight.sum(0).expand(batch, -1), rtol=1e-4, atol=1e-4)


@needs_onednn
def test_quickened_linear_layers_leave_other_inputs_to_the_framework() -> None:
    ours, theirs = Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    for x in (torch.randn(2, 4, 5), torch.randn(5), torch.randn(5, 2).t()):
        assert torch.equal(ours(x), theirs(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(torch.ones(2, 5)), theirs(torch.ones(2, 5)))
    assert torch.equal(ours.double()(x.double()), theirs.double()(x.double()))


@needs_onednn
def test_a_training_computes_large_linear_layers_in_our_way_on_some_processors() -> None:
    lenet = [type(m) for m in quickened(make("lenet"), products=True) if isinstance(m, nn.Linear)]
    assert lenet == [Linear, Linear, nn.Linear]
    untouched = {type(m) for m in quickened(make("lenet")) if isinstance(m, nn.Linear)}
    assert untouched == {nn.Linear}


def test_a_training_computes_lenets_second_convolution_in_our_way_and_networks_have_the_frameworks() -> None:
    model = make("lenet")
    # As the manual's own starting weights ask: by the very type.
    assert [type(m) for m in model if isinstance(m, nn.Conv2d)] == [nn.Conv2d, nn.Conv2d]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert quickened(model) is model
    norms = {type(m) for m in quickened(make("lenet-bn")).modules() if isinstance(m, _BatchNorm)}
    assert norms == {BatchNorm2d, nn.BatchNorm1d}
    assert [type(m) for m in model if isinstance(m, nn.Conv2d)] == [nn.Conv2d, Conv2d]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "theirs"),
    [(AvgPool2d(2), nn.AvgPool2d(2)), (Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)), (BatchNorm2d(2), nn.BatchNorm2d(2))],
)
def test_faster_layers_compute_in_low_precision_as_the_frameworks(layer: nn.Module, theirs: nn.Module) -> None:
    theirs.load_state_dict(layer.state_dict())
    inputs = [torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        found, told = layer(inputs[0]), theirs(inputs[1])
    assert found.dtype == told.dtype
    torch.testing.assert_close(found, told)
    found.float().sum().backward()
    told.float().sum().backward()
    for one, other in zip((inputs[0], *layer.parameters()), (inputs[1], *theirs.parameters()), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_batch_norm_refuses_what_has_no_variance() -> None:
    for theirs, shape in ((nn.BatchNorm1d(3), (1, 3)), (nn.BatchNorm2d(3), (1, 3, 1, 1))):
        ours = BatchNorm(3)
        for layer in (ours, theirs):
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                layer(torch.randn(shape))
            layer.eval()(torch.randn(shape))
    with pytest.raises(ValueError, match=r"takes \(B, C\)"):
        BatchNorm(3)(torch.randn(2, 3, 4))


def test_batch_norm_statistics_travel_with_the_layer() -> None:
    layer = BatchNorm(4)
    layer(torch.randn(8, 4) + 3)
    assert layer.state_dict().keys() == {"gamma", "beta", "moving_mean", "moving_var"}
    other = BatchNorm(4)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(layer.eval()(x), other.eval()(x))
    # The function itself changes nothing that it is given.
    mean, var = torch.zeros(4), torch.ones(4)
    y, mean_now, var_now = batch_norm(x, layer.gamma, layer.beta, mean, var, momentum=0.8, training=True)
    fresh = BatchNorm(4, momentum=0.8)
    assert torch.equal(y, fresh(x))
    torch.testing.assert_close(mean_now, fresh.moving_mean)
    torch.testing.assert_close(var_now, fresh.moving_var)
    assert torch.equal(mean, torch.zeros(4))
    assert torch.equal(var, torch.ones(4))


def test_both_batch_norm_lenets_train_to_the_same_weights() -> None:
    ours, theirs = make("lenet-bn-scratch").double(), make("lenet-bn").double()
    named = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
    state = ours.state_dict()
    for path, module in theirs.named_modules():
        for key, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if key != "num_batches_tracked":
                norm = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
                state[f"{path}.{named[key] if norm else key}"] = value.detach().clone()
    ours.load_state_dict(state)
    optimizers = [torch.optim.SGD(m.parameters(), lr=1.0) for m in (ours, theirs)]
    for _ in range(5):
        x, y = torch.rand(16, 1, 28, 28, dtype=torch.float64), torch.randint(0, 10, (16,))
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


# Every network


@every_model
@pytest.mark.parametrize(("channels", "classes", "size"), [(1, 10, 0), (3, 2, 45), (4, 7, 0)])
def test_other_inputs(name: str, channels: int, classes: int, size: int) -> None:
    size = max(size, small(name))
    model = make(name, channels, classes, size).eval()
    x = torch.randn(3, channels, size, size)
    with torch.no_grad():
        y = model(x)
        assert y.shape == (3, classes)
        assert torch.equal(y, model(x))  # deterministic
        torch.testing.assert_close(model(x[:1]), y[:1], rtol=1e-3, atol=1e-4)  # a batch of one


@every_model
def test_smallest_image_is_named_and_works(name: str) -> None:
    with torch.device("meta"):  # shapes are all that this is about
        with pytest.raises(CnnlabError, match=f"^{name}: it needs images of at least") as caught:
            make(name, size=0)
        smallest = int(str(caught.value).split("at least ")[1].split("x")[0])
        model = make(name, size=smallest).eval()
        assert model(torch.zeros(1, 1, smallest, smallest)).shape == (1, 10)
        with pytest.raises(CnnlabError, match=f"at least {smallest}x{smallest} pixels, not {smallest - 1}x"):
            make(name, size=smallest - 1)


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "nin", "lenet", "densenet", "densenet121"])
def test_side_is_what_the_layers_make_of_it(name: str) -> None:
    with torch.device("meta"):
        model = make(name, size=224)
        assert isinstance(model, nn.Sequential)
        spatial = next(i for i, m in enumerate(model) if isinstance(m, nn.Flatten | nn.AdaptiveAvgPool2d))
        features = model[:spatial].eval()
        for size in (224, 131, 97, 70):
            assert side_after(features, size) == features(torch.zeros(1, 1, size, size)).shape[-1]


@every_model
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    model, size = make(name, size=small(name)), small(name)
    # A bias before batch norm has no effect: its gradient is zero but for rounding.
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear | BatchNorm | _BatchNorm)]
    before_norm = {f"{n}.bias" for (n, _), (_, after) in pairwise(layers) if isinstance(after, BatchNorm | _BatchNorm)}
    F.cross_entropy(model(torch.randn(8, 1, size, size)), torch.arange(8)).backward()
    for path, p in model.named_parameters():
        assert p.grad is not None, path
        assert torch.isfinite(p.grad).all(), path
        if path not in before_norm:
            assert p.grad.abs().sum() > 0, path


# Starting weights and learning rate that suit the networks without batch norm; the others take the framework's.
OVERFIT = {
    "lenet": ("framework", 0.01),
    "alexnet": ("he-normal", 1e-4),
    "vgg": ("he-normal", 1e-4),
    "nin": ("xavier-uniform", 3e-4),
    "googlenet": ("he-normal", 1e-3),
}


@every_model
def test_overfits_two_batches(name: str) -> None:
    size = small(name)
    model = make(name, size=size)
    scheme, rate = next((v for k, v in OVERFIT.items() if name.startswith(k)), ("framework", 1e-3))
    initialize(model, scheme)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # made to hinder just this
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)  # random ones drown an image of noise in the deeper networks
    if name == "nin":  # a class whose last ReLU begins at zero, by rounding here and not there, would stay there
        nn.init.ones_([m for m in model.modules() if isinstance(m, nn.Conv2d)][-1].bias)
    torch.manual_seed(1)
    x, y = torch.randn(12, 1, size, size), torch.arange(12) % 4
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    losses: list[float] = []
    for step in range(600):
        part = slice(0, 6) if step % 2 else slice(6, 12)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[part]), y[part])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if max(losses[-2:]) < 0.1:
            break
    assert max(losses[-2:]) < 0.1, losses[-10:]


@every_model
def test_compiles_as_one_graph(name: str) -> None:
    """The whole of forward and backward is traced without a break, and the trace computes the same."""
    size = small(name)
    model = make(name, size=size).eval()
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    x, y = torch.randn(2, 1, size, size), torch.arange(2)
    expected, found = model(x), compiled(x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    F.cross_entropy(expected, y).backward()
    F.cross_entropy(found, y).backward()
    for (path, p), q in zip(model.named_parameters(), compiled.parameters(), strict=True):
        assert q.grad is not None
        assert p.grad is not None
        assert relative(q.grad, p.grad) < 1e-3 or p.grad.norm() < 1e-5, path


@every_model
def test_bf16(name: str) -> None:
    """Mixed precision: near the float32 answer, gradients finite."""
    size = small(name)
    model = make(name, size=size)
    x, y = torch.randn(4, 1, size, size), torch.arange(4)
    model(x)  # gives the running statistics values of their own
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x)
        F.cross_entropy(found, y).backward()
    expected = model(x)
    assert relative(found.float(), expected) < 0.1
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_nin_as_printed_has_no_negative_logit_and_ours_has() -> None:
    x = torch.randn(8, 1, 67, 67)
    assert (make("nin", size=67).eval()(x) >= 0).all()
    assert (make("nin-linear", size=67).eval()(x) < 0).any()


def test_any_conv_arch() -> None:
    net = vgg(((1, 16), (3, 24)), ratio=2, num_classes=3, in_channels=2, image_size=20)
    assert net(torch.randn(2, 2, 20, 20)).shape == (2, 3)
    assert [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)] == [8, 12, 12, 12]


# LeNet by hand


def by_hand(name: str, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """LeNet from the paper's arithmetic: unfold and matrix products, no torch layers (eval mode)."""

    def conv(x: Tensor, w: Tensor, b: Tensor, padding: int) -> Tensor:
        n, _, h, _ = x.shape
        side = h + 2 * padding - 4
        columns = F.unfold(x, 5, padding=padding)  # (N, C*25, L)
        return (w.flatten(1) @ columns + b[:, None]).view(n, len(w), side, side)

    def norm(x: Tensor, i: int) -> Tensor:
        if name == "lenet":
            return x
        shape = (1, -1, 1, 1) if x.ndim == 4 else (1, -1)
        mean, var, gamma, beta = (
            weights[f"{i}.{k}"].view(shape) for k in ("running_mean", "running_var", "weight", "bias")
        )
        return gamma * (x - mean) / (var + 1e-5).sqrt() + beta

    def pool(x: Tensor) -> Tensor:
        return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4

    def sigmoid(x: Tensor) -> Tensor:
        return 1 / (1 + (-x).exp())

    i = dict(c1=0, n1=0, c2=3, n2=0, f1=7, n3=0, f2=9, n4=0, f3=11) if name == "lenet" else \
        dict(c1=0, n1=1, c2=4, n2=5, f1=9, n3=10, f2=12, n4=13, f3=15)  # fmt: skip
    w = weights
    x = pool(sigmoid(norm(conv(x, w[f"{i['c1']}.weight"], w[f"{i['c1']}.bias"], 2 if name == "lenet" else 0), i["n1"])))
    x = pool(sigmoid(norm(conv(x, w[f"{i['c2']}.weight"], w[f"{i['c2']}.bias"], 0), i["n2"])))
    x = x.flatten(1)
    x = sigmoid(norm(x @ w[f"{i['f1']}.weight"].T + w[f"{i['f1']}.bias"], i["n3"]))
    x = sigmoid(norm(x @ w[f"{i['f2']}.weight"].T + w[f"{i['f2']}.bias"], i["n4"]))
    return x @ w[f"{i['f3']}.weight"].T + w[f"{i['f3']}.bias"]


@pytest.mark.parametrize("name", ["lenet", "lenet-bn"])
def test_lenet_equals_its_arithmetic(name: str) -> None:
    model = make(name).double()
    model(torch.randn(64, 1, 28, 28, dtype=torch.float64))  # gives the running statistics values other than 0 and 1
    model.eval()
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(model(x), by_hand(name, model.state_dict(), x), rtol=1e-10, atol=1e-12)


def test_xavier_uniform_touches_weights_only() -> None:
    model = make("lenet-bn")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    initialize(model, "xavier-uniform")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan = module.weight[0].numel() + module.weight.numel() // module.weight.shape[1]
            bound = (6 / fan) ** 0.5
            assert module.weight.abs().max() <= bound
            assert module.weight.abs().max() > 0.9 * bound  # uniform over the whole range
            assert module.bias is not None
            assert torch.equal(module.bias, before[f"{name}.bias"])
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))


def test_unknown_model_names_its_neighbours() -> None:
    with pytest.raises(CnnlabError, match="did you mean lenet"):
        make("lenett")
    with pytest.raises(CnnlabError, match="unknown library 'tim'; did you mean timm"):
        make("tim:resnet18")


@every_model
def test_no_operation_lacks_a_deterministic_version_on_a_gpu(name: str) -> None:
    """Those of torch.use_deterministic_algorithms' list that a network could meet; training would stop on one."""
    seen: set[str] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    size = small(name)
    with torch.device("meta"):
        model, x = make(name, size=size), torch.zeros(4, 1, size, size)
        with Watch():
            model(x).sum().backward()
    assert "convolution_backward" in seen
    assert not seen & {
        "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "avg_pool3d_backward", "put_", "histc",
        "upsample_bilinear2d_backward", "reflection_pad2d_backward", "replication_pad2d_backward", "scatter_reduce",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("name", ["lenet-bn-scratch", "nin", "resnet18-manual"])
def test_trains_compiled_by_the_default_compiler(name: str) -> None:
    """Three steps, real machine code: the same losses as without."""
    size = small(name)
    x, y = torch.rand(8, 1, size, size), torch.arange(8)
    losses: list[list[float]] = []
    for compiled in (False, True):
        model = make(name, size=size)
        torch._dynamo.reset()
        forward = torch.compile(model) if compiled else model
        # Larger updates carry a rounding of the first step to a hundredth of the third's loss, on some processors.
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
        losses.append([])
        for _ in range(3):
            torch.manual_seed(0)
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            optimizer.zero_grad()
            loss = F.cross_entropy(forward(x), y)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@settings(deadline=None, max_examples=60)
@given(
    channels=st.integers(1, 3), kernel=st.tuples(st.integers(1, 11), st.integers(1, 11)), stride=st.integers(1, 4),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)), side=st.tuples(st.integers(11, 25), st.integers(11, 25)),
)  # fmt: skip
def test_a_convolution_folded_by_its_stride_is_the_same(
    channels: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int], side: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 5, kernel, stride, padding).double()
    x = torch.randn(2, channels, *side, dtype=torch.float64)
    theirs = layer(x)
    ours = folded(x, layer.weight, layer.bias, stride, padding)
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn_like(theirs)
    expected = torch.autograd.grad(theirs, list(layer.parameters()), gradient)
    found = torch.autograd.grad(ours, list(layer.parameters()), gradient)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_for_a_gpu_only_layers_that_see_images_are_folded() -> None:
    found = {}
    for name, image_size in (("alexnet", 224), ("lenet-bn", 28), ("airbench94", 32)):
        model = build_model(name, num_classes=10, in_channels=1, image_size=image_size)
        before = model.state_dict()
        assert quickened_for_gpu(model) is model
        assert model.state_dict().keys() == before.keys()
        found[name] = [type(m) for m in model.modules() if isinstance(m, Aligned)]
        x = torch.rand(2, 1, image_size, image_size)
        assert model(x).shape == (2, 10)  # on a processor as before
    assert found == {"alexnet": [Aligned], "lenet-bn": [Aligned], "airbench94": [AlignedWhitening]}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("how", [(96, 11, 4, 1), (64, 7, 2, 3), (16, 3, 1, 1)])
def test_on_a_gpu_a_folded_first_layer_is_the_same(how: tuple[int, int, int, int]) -> None:
    torch.manual_seed(0)
    channels, kernel, stride, padding = how
    layer = nn.Conv2d(1, channels, kernel, stride, padding).cuda()
    x = torch.randn(8, 1, 96, 96, device="cuda")
    answers = []
    for compiled in (None, False, True):
        if compiled is False:
            quickened_for_gpu(layer)
            assert type(layer) is Aligned
        call = torch.compile(layer, dynamic=False) if compiled else layer
        layer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y = call(x)
        y.float().square().mean().backward()
        answers.append((y.float(), layer.weight.grad))
    for y, gradient in answers[1:]:
        torch.testing.assert_close(y, answers[0][0], rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(gradient, answers[0][1], rtol=5e-2, atol=1e-3)


def test_airbenchs_head_compiled_takes_one_of_the_largest_places() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(_first_largest(x), x.amax((2, 3)))
    gradient = torch.randn(4, 3, dtype=torch.float64)
    found, expected = (torch.autograd.grad(y, x, gradient)[0] for y in (_first_largest(x), x.amax((2, 3))))
    torch.testing.assert_close(found, expected)
    equal = torch.ones(1, 2, 2, 2, requires_grad=True)
    (found,) = torch.autograd.grad(_first_largest(equal).sum(), equal)
    assert found.flatten(2).tolist() == [[[1, 0, 0, 0], [1, 0, 0, 0]]]
    head = Head(3, 10).double()
    torch.testing.assert_close(torch.compile(head, dynamic=False, backend="eager")(x), head(x))
