"""The faster layers for training compute the same as PyTorch's and leave the network unchanged."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cnnlab.device import fast_layers
from cnnlab.device.fast_layers import FoldedConv2d, OneDnnLinear, folded_conv2d, with_fast_layers
from cnnlab.models import build_model
from cnnlab.models.airbench import Whitening

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch was built without oneDNN"
)


def linear_pair(inputs: int, outputs: int, bias: bool = True) -> tuple[OneDnnLinear, nn.Linear]:
    ours, theirs = OneDnnLinear(inputs, outputs, bias=bias), nn.Linear(inputs, outputs, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@needs_onednn
@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70)), bias=st.booleans(), first=st.booleans()
)
def test_linear_layers_match_torch(shape: tuple[int, int, int], bias: bool, first: bool) -> None:
    batch, inputs, outputs = shape
    ours, theirs = linear_pair(inputs, outputs, bias)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, inputs, generator=generator)
    leaves = [x.clone().requires_grad_(not first) for _ in range(2)]
    found, expected = ours(leaves[0]), theirs(leaves[1])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn(batch, outputs, generator=generator)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for one, other in zip((leaves[0], *ours.parameters()), (leaves[1], *theirs.parameters()), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)
    ours.requires_grad_(False)  # as if only the layers before it were trained
    x.requires_grad_()
    ours(x).sum().backward()
    torch.testing.assert_close(x.grad, ours.weight.sum(0).expand(batch, -1), rtol=1e-4, atol=1e-4)


@needs_onednn
def test_linear_layers_can_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    x, found = torch.randn(4, 6), []
    for layer in linear_pair(6, 3):
        gradients = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()), create_graph=True)
        penalty = torch.stack([g.square().sum() for g in gradients]).sum()
        found.append(torch.autograd.grad(penalty, list(layer.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@needs_onednn
def test_linear_layers_leave_other_inputs_to_torch() -> None:
    ours, theirs = linear_pair(5, 3)
    for x in (torch.randn(2, 4, 5), torch.randn(5), torch.randn(5, 2).t()):
        assert torch.equal(ours(x), theirs(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(torch.ones(2, 5)), theirs(torch.ones(2, 5)))
    assert torch.equal(ours.double()(torch.ones(2, 5).double()), theirs.double()(torch.ones(2, 5).double()))


@needs_onednn
def test_a_copy_shares_weights_buffers_and_names_and_the_network_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_layers, "_has_slow_mkl", lambda: True)
    large = nn.Linear(1024, 1024)
    model = nn.Sequential(nn.Sequential(nn.BatchNorm1d(1024), large, nn.ReLU()), nn.Linear(1024, 10))
    types = [type(m) for m in model.modules()]
    fast = with_fast_layers(model, CPU)
    assert [type(m) for m in model.modules()] == types
    assert [type(m) for m in fast.modules()] == [OneDnnLinear if t is nn.Linear and i == 3 else t
                                                 for i, t in enumerate(types)]  # fmt: skip
    ours, theirs = fast.state_dict(keep_vars=True), model.state_dict(keep_vars=True)
    assert list(ours) == list(theirs)
    assert all(ours[name] is theirs[name] for name in theirs)
    x = torch.randn(8, 1024)
    F.cross_entropy(fast(x), torch.arange(8)).backward()
    assert large.weight.grad is not None
    assert model[0][0].running_mean.abs().sum() > 0
    torch.testing.assert_close(fast.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-4)
    fast.train()
    assert model[0][0].training  # shared layers change mode, the model's own containers do not
    assert not model.training


def test_without_a_layer_to_replace_the_network_itself_is_returned() -> None:
    model = build_model("lenet-bn-scratch")
    assert with_fast_layers(model, CPU) is model


@settings(deadline=None, max_examples=60)
@given(
    channels=st.integers(1, 3), kernel=st.tuples(st.integers(1, 11), st.integers(1, 11)), stride=st.integers(1, 4),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)), side=st.tuples(st.integers(11, 25), st.integers(11, 25)),
)  # fmt: skip
def test_a_convolution_folded_by_its_stride_matches_torch(
    channels: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int], side: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 5, kernel, stride, padding).double()
    x = torch.randn(2, channels, *side, dtype=torch.float64)
    theirs = layer(x)
    ours = folded_conv2d(x, layer.weight, layer.bias, stride, padding)
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn_like(theirs)
    expected = torch.autograd.grad(theirs, list(layer.parameters()), gradient)
    found = torch.autograd.grad(ours, list(layer.parameters()), gradient)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_on_a_gpu_only_layers_that_see_images_are_folded() -> None:
    found = {}
    for name, image_size in (("alexnet", 224), ("lenet-bn", 28), ("airbench94", 32)):
        model = build_model(name, num_classes=10, in_channels=1, image_size=image_size)
        fast = with_fast_layers(model, CUDA)
        assert fast.state_dict().keys() == model.state_dict().keys()
        found[name] = sum(isinstance(m, FoldedConv2d) for m in fast.modules())
        assert isinstance(next(m for m in fast.modules() if isinstance(m, nn.Conv2d)), FoldedConv2d)
        x = torch.rand(2, 1, image_size, image_size)
        assert torch.equal(fast.eval()(x), model.eval()(x))  # on a CPU, PyTorch's own layer runs
    assert found == {"alexnet": 1, "lenet-bn": 1, "airbench94": 1}
    assert any(isinstance(m, Whitening) for m in model.modules())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("conv", [(96, 11, 4, 1), (64, 7, 2, 3), (16, 3, 1, 1)])
def test_on_a_gpu_a_folded_first_layer_matches_torch(conv: tuple[int, int, int, int]) -> None:
    torch.manual_seed(0)
    channels, kernel, stride, padding = conv
    layer = nn.Conv2d(1, channels, kernel, stride, padding).cuda()
    fast = with_fast_layers(layer, CUDA)
    assert type(fast) is FoldedConv2d
    x = torch.randn(8, 1, 96, 96, device="cuda")
    results: list[tuple[Tensor, Tensor | None]] = []
    for call in (layer, fast, torch.compile(fast, dynamic=False)):
        layer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y = call(x)
        y.float().square().mean().backward()
        results.append((y.float(), layer.weight.grad))
    for y, gradient in results[1:]:
        torch.testing.assert_close(y, results[0][0], rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(gradient, results[0][1], rtol=5e-2, atol=1e-3)
