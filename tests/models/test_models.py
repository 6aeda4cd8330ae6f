"""Each network against the manual's figures and an independent computation."""

from __future__ import annotations

import copy
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from cnnlab.io.errors import CnnlabError
from cnnlab.models import DESCRIPTIONS, MODELS, build_model
from cnnlab.models.airbench import Head, _first_largest
from cnnlab.models.batch_norm import BatchNorm, batch_norm
from cnnlab.models.densenet import DenseBlock
from cnnlab.models.googlenet import Inception
from cnnlab.models.layers import side_after
from cnnlab.models.nin import nin_block
from cnnlab.models.resnet import Residual
from cnnlab.models.vgg import vgg
from cnnlab.training.optim import initialize

# The image size of each printed table, and the number of parameters at that size, for grey images and ten classes.
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
every_model = pytest.mark.parametrize("name", MODELS)
# Networks that differ from another one only in depth, width or image size.
VARIANTS = {
    "vgg11", "vgg13", "vgg16", "vgg19", "resnet34", "resnet101", "resnet152", "resnet34-manual", "resnet101-manual",
    "resnet152-manual", "resnet18-manual-cifar", "resnet34-cifar", "resnet50-cifar", "alexnet-small", "vgg11-small",
    "nin-small", "efficientnet-lite0.in1k", "googlenet-small", "airbench94", "airbench95", "densenet169", "densenet201",
}  # fmt: skip
FAMILIES = [name for name in MODELS if name not in VARIANTS]
every_family = pytest.mark.parametrize("name", FAMILIES)
# For tests of half a minute per network: without variants that differ in only one or two layers.
most_families = pytest.mark.parametrize("name", [n for n in FAMILIES if n not in ("resnet50-manual", "nin-linear")])


def make_network(name: str, channels: int = 1, classes: int = 10, size: int = 28) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, num_classes=classes, in_channels=channels, image_size=size)


def smallest_size(name: str) -> int:
    """Return an image size at which two cores can train the network: the smallest that works, at least 28."""
    with torch.device("meta"), pytest.raises(CnnlabError) as caught:
        make_network(name, size=0)
    return max(28, int(re.findall(r"at least (\d+)x", str(caught.value))[0]))


# The manual's numbers


@pytest.mark.parametrize("name", MANUAL)
def test_parameter_count_matches_the_manual(name: str) -> None:
    size, count = MANUAL[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in make_network(name, size=size).parameters()) == count


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.txt")), ids=lambda p: p.stem)
def test_shapes_match_the_manual_line_for_line(path: Path) -> None:
    head, *lines = path.read_text().splitlines()
    size = int(re.findall(r"at (\d+) pixels", head)[0])
    assert size == MANUAL[path.stem][0]
    with torch.device("meta"):
        model, x = make_network(path.stem, size=size).eval(), torch.zeros(1, 1, size, size)
    assert isinstance(model, nn.Sequential)
    found = []
    for layer in model:
        x = layer(x)
        found.append(f"{type(layer).__name__} output shape: {x.shape}")  # the manual's format
    assert found == lines


def test_every_network_with_a_printed_table_is_compared() -> None:
    assert {p.stem for p in GOLDEN.glob("*.txt")} == MANUAL.keys() - {"vgg11-quarter"}


def test_blocks_have_the_shapes_of_the_manuals_demonstrations() -> None:
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


def torchvision_pair(name: str, size: int) -> tuple[nn.Module, nn.Module]:
    """Return torchvision's network and ours, float64, with the same weights. Both list them in the same order."""
    with torch.device("meta"):
        shapes = [
            [v.shape for v in model.state_dict().values()]
            for model in (torchvision.models.get_model(name, num_classes=7), make_network(name, 3, 7, 224))
        ]
    assert shapes[0] == shapes[1]
    theirs, ours = torchvision.models.get_model(name, weights=None, num_classes=7), make_network(name, 3, 7, size)
    if name.startswith("vgg"):  # at 224 pixels its pooling to 7x7 does nothing; fewer need a smaller layer after it
        theirs.avgpool, theirs.classifier[0] = nn.Identity(), nn.Linear(512 * (size // 32) ** 2, 4096)
    target = ours.state_dict()
    ours.load_state_dict(dict(zip(target, theirs.state_dict().values(), strict=True)))
    return theirs.double(), ours.double()


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach(), expected.detach()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


@pytest.mark.parametrize("name", ORACLES)
def test_networks_match_torchvision_with_its_weights(name: str) -> None:
    """Logits and running statistics are equal; for one network of each family the gradients, too."""
    size, batch = 64, 2
    theirs, ours = torchvision_pair(name, size)
    x, y = torch.randn(batch, 3, size, size, dtype=torch.float64), torch.arange(batch)
    # With batch statistics and with running ones. VGG has neither.
    for training in (False,) if name.startswith("vgg") else (True, False):
        theirs.train(training), ours.train(training)
        for module in (*theirs.modules(), *ours.modules()):
            if isinstance(module, nn.Dropout):
                module.eval()  # dropout is random
        expected, found = theirs(x), ours(x)
        assert relative_error(found, expected) < 1e-10
        if name not in FAMILIES and name != "vgg11":
            continue
        theirs.zero_grad(), ours.zero_grad()
        F.cross_entropy(expected, y).backward()
        F.cross_entropy(found, y).backward()
        for (path, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            assert relative_error(p.grad, q.grad) < 1e-10 or (p.grad - q.grad).abs().max() < 1e-14, path
    if not name.startswith("vgg"):
        for p, q in zip(ours.buffers(), theirs.buffers(), strict=True):
            assert relative_error(p.double(), q.double()) < 1e-10


def test_the_manuals_resnet_differs_from_the_papers_in_biases_and_projections_only() -> None:
    paper, manual = make_network("resnet18", size=64).double(), make_network("resnet18-manual", size=64).double()
    extra = {k.rpartition(".")[0] + " bias" for k in manual.state_dict() if k not in paper.state_dict() and "bias" in k}
    assert len(extra) == 20  # 17 convolutions in blocks and stem, 3 projections
    # With those biases 0 and the paper's projection norms without effect, the two are the same network.
    state = manual.state_dict()
    for key, value in paper.state_dict().items():
        if key in state:
            state[key] = value
        elif key.endswith("shortcut.0.weight"):
            state[key.replace("shortcut.0", "shortcut")] = value
    manual.load_state_dict({k: torch.zeros_like(v) if k not in paper.state_dict() and k.endswith("bias") else v
                            for k, v in state.items()})  # fmt: skip
    x = torch.randn(2, 1, 64, 64, dtype=torch.float64)
    # with initial running statistics, the projection's norm only divides by sqrt(1 + eps)
    torch.testing.assert_close(manual.eval()(x), paper.eval()(x), rtol=1e-3, atol=1e-4)


# Batch normalisation from scratch, against torch's layer


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_batch_norm_from_scratch_matches_torch(data: st.DataObject) -> None:
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
    with torch.enable_grad():  # train() and eval() switch the mode, gradient mode does not
        ours(x.requires_grad_())
    assert torch.equal(before, ours.moving_mean)


def test_batch_norm_from_scratch_takes_low_precision() -> None:
    ours, theirs = BatchNorm(3), nn.BatchNorm2d(3)
    x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    torch.testing.assert_close(ours(x).bfloat16(), theirs(x), rtol=0.05, atol=0.05)
    torch.testing.assert_close(ours.moving_mean, theirs.running_mean, rtol=0.02, atol=0.01)
    torch.testing.assert_close(ours.moving_var, theirs.running_var, rtol=0.02, atol=0.01)
    ours(x).float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_batch_norm_refuses_single_values() -> None:
    for theirs, shape in ((nn.BatchNorm1d(3), (1, 3)), (nn.BatchNorm2d(3), (1, 3, 1, 1))):
        ours = BatchNorm(3)
        for layer in (ours, theirs):
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                layer(torch.randn(shape))
            layer.eval()(torch.randn(shape))
    with pytest.raises(ValueError, match=r"\(B, C\)"):
        BatchNorm(3)(torch.randn(2, 3, 4))


def test_batch_norm_statistics_are_saved() -> None:
    layer = BatchNorm(4)
    layer(torch.randn(8, 4) + 3)
    assert layer.state_dict().keys() == {"gamma", "beta", "moving_mean", "moving_var"}
    other = BatchNorm(4)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(layer.eval()(x), other.eval()(x))
    # The function changes none of its arguments.
    mean, var = torch.zeros(4), torch.ones(4)
    y, mean_now, var_now = batch_norm(x, layer.gamma, layer.beta, mean, var, momentum=0.8, training=True)
    fresh = BatchNorm(4, momentum=0.8)
    assert torch.equal(y, fresh(x))
    torch.testing.assert_close(mean_now, fresh.moving_mean)
    torch.testing.assert_close(var_now, fresh.moving_var)
    assert torch.equal(mean, torch.zeros(4))
    assert torch.equal(var, torch.ones(4))


def test_both_batch_norm_lenets_train_to_the_same_weights() -> None:
    ours, theirs = make_network("lenet-bn-scratch").double(), make_network("lenet-bn").double()
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


# Derivatives of any order


def test_batch_norm_can_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    for shape in ((5, 3), (3, 2, 2, 2)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        weights = [torch.randn(shape[1], dtype=torch.float64, requires_grad=True) for _ in range(2)]
        running = torch.zeros(shape[1], dtype=torch.float64), torch.ones(shape[1], dtype=torch.float64)

        def normalized(x: Tensor, *weights: Tensor, running: tuple[Tensor, Tensor] = running) -> Tensor:
            return batch_norm(x, *weights, *running, training=True)[0]

        assert torch.autograd.gradcheck(normalized, (x, *weights))
        assert torch.autograd.gradgradcheck(normalized, (x, *weights))


@every_family
def test_gradients_can_be_differentiated_and_torch_func_agrees(name: str) -> None:
    size = smallest_size(name)
    model = make_network(name, size=size).eval()  # eval mode: torch.func forbids changing buffers in place
    x, y = torch.randn(2, 1, size, size), torch.arange(2)
    parameters = dict(model.named_parameters())
    names = list(parameters)[-4:]
    loss = F.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, [parameters[n] for n in names], create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in gradients), list(parameters.values()), allow_unused=True)
    assert all(torch.isfinite(g).all() for g in second if g is not None)
    assert any(g is not None and g.abs().sum() > 0 for g in second)

    def loss_of(changed: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, changed, (x,)), y)

    found = torch.func.grad(loss_of)({n: parameters[n].detach() for n in names})
    for n, expected in zip(names, gradients, strict=True):
        torch.testing.assert_close(found[n], expected.detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["lenet", "lenet-bn", "lenet-bn-scratch"])
def test_lenets_in_training_can_be_differentiated_twice(name: str) -> None:
    """The gradient of the gradient's norm equals a difference quotient."""
    model = make_network(name).double()
    x, y = torch.rand(4, 1, 28, 28, dtype=torch.float64), torch.arange(4)
    weight = next(model.parameters())

    def penalty() -> Tensor:
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), weight, create_graph=True)
        return 1e3 * gradient.square().sum()

    (second,) = torch.autograd.grad(penalty(), weight)
    direction, step = torch.randn_like(weight), 1e-5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(direction, alpha=sign * step)
        values.append(penalty().item())
        with torch.no_grad():
            weight.sub_(direction, alpha=sign * step)
    expected = (values[0] - values[1]) / (2 * step)
    assert (second * direction).sum().item() == pytest.approx(expected, rel=1e-4, abs=1e-9)


# Every network


def test_every_model_has_a_one_line_description() -> None:
    assert list(DESCRIPTIONS) == list(MODELS)
    assert all(0 < len(line) <= 80 and "\n" not in line for line in DESCRIPTIONS.values())


@pytest.mark.parametrize("name", ["lenet", "lenet-bn", "alexnet", "resnet18", "googlenet", "densenet"])
def test_a_network_consists_of_standard_torch_layers(name: str) -> None:
    leaves = [m for m in make_network(name, size=MANUAL.get(name, (64,))[0]).modules() if not list(m.children())]
    assert all(type(m).__module__.startswith("torch.nn.modules") for m in leaves)


@every_family
@pytest.mark.parametrize(("channels", "classes", "size"), [(3, 2, 45), (4, 7, 0)])
def test_other_channels_classes_and_sizes_work(name: str, channels: int, classes: int, size: int) -> None:
    size = max(size, smallest_size(name))
    model = make_network(name, channels, classes, size).eval()
    x = torch.randn(3, channels, size, size)
    with torch.no_grad():
        y = model(x)
        assert y.shape == (3, classes)
        assert torch.equal(y, model(x))  # deterministic
        torch.testing.assert_close(model(x[:1]), y[:1], rtol=1e-3, atol=1e-4)  # a batch of one


@every_model
def test_smallest_image_is_named_and_works(name: str) -> None:
    with torch.device("meta"):  # only shapes matter here
        with pytest.raises(CnnlabError, match=f"^{name}: .*0x0") as caught:
            make_network(name, size=0)
        smallest = max(map(int, re.findall(r"\b(\d+)x\1\b", str(caught.value))))
        model = make_network(name, size=smallest).eval()
        assert model(torch.zeros(1, 1, smallest, smallest)).shape == (1, 10)
        with pytest.raises(CnnlabError, match=rf"^{name}: .*\b{smallest}x{smallest}\b.*\b{smallest - 1}x"):
            make_network(name, size=smallest - 1)


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "nin", "lenet", "densenet", "densenet121"])
def test_side_after_matches_the_output(name: str) -> None:
    with torch.device("meta"):
        model = make_network(name, size=224)
        assert isinstance(model, nn.Sequential)
        spatial = next(i for i, m in enumerate(model) if isinstance(m, nn.Flatten | nn.AdaptiveAvgPool2d))
        features = model[:spatial].eval()
        for size in (224, 131, 97, 70):
            assert side_after(features, size) == features(torch.zeros(1, 1, size, size)).shape[-1]


@every_family
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    model, size = make_network(name, size=smallest_size(name)), smallest_size(name)
    # A bias before batch norm has no effect: its gradient is zero except for rounding.
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear | BatchNorm | _BatchNorm)]
    before_norm = {f"{n}.bias" for (n, _), (_, after) in pairwise(layers) if isinstance(after, BatchNorm | _BatchNorm)}
    F.cross_entropy(model(torch.randn(8, 1, size, size)), torch.arange(8)).backward()
    for path, p in model.named_parameters():
        assert p.grad is not None, path
        assert torch.isfinite(p.grad).all(), path
        if path not in before_norm:
            assert p.grad.abs().sum() > 0, path


# Initial weights and learning rate for the networks without batch norm. The others start from PyTorch's weights.
OVERFIT = {
    "lenet": ("pytorch", 0.01),
    "alexnet": ("he-normal", 1e-4),
    "vgg": ("he-normal", 1e-4),
    "nin": ("xavier-uniform", 3e-4),
    "googlenet": ("he-normal", 1e-3),
}


# Narrow variants of networks with many weights: built by the same code, but faster.
NARROW = {
    "alexnet": "alexnet-small", "vgg11-quarter": "vgg11-small", "nin": "nin-small", "googlenet": "googlenet-small",
    "resnet18": "resnet18-small", "nin-linear": "nin-small", "resnet18-cifar": "resnet18-small",
    "resnet50-manual": "resnet50",
}  # fmt: skip


@pytest.mark.parametrize("name", dict.fromkeys(NARROW.get(name, name) for name in FAMILIES))
def test_overfits_two_batches(name: str) -> None:
    size = smallest_size(name)
    model = make_network(name, size=size)
    scheme, rate = next((v for k, v in OVERFIT.items() if name.startswith(k)), ("pytorch", 1e-3))
    initialize(model, scheme)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # dropout would prevent overfitting
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)  # in the deeper networks random biases outweigh an image of noise
    if name == "nin-small":  # if a class's last ReLU started at zero, which rounding decides, it would stay at zero
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


# Without the large networks, which take ten seconds each and have small relatives here.
@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in ("densenet121", "efficientnet-lite0", "resnet50")])
def test_compiles_as_one_graph(name: str) -> None:
    """Forward and backward are traced without a graph break, and the graph computes the same."""
    size = smallest_size(name)
    model = make_network(name, size=size).eval()
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
        assert relative_error(q.grad, p.grad) < 1e-3 or p.grad.norm() < 1e-5, path


@most_families
def test_logits_in_bfloat16_are_close_to_float32(name: str) -> None:
    """With mixed precision, logits are close to those in float32 and gradients are finite."""
    size = smallest_size(name)
    model = make_network(name, size=size)
    x, y = torch.randn(4, 1, size, size), torch.arange(4)
    model(x)  # moves the running statistics
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x)
        F.cross_entropy(found, y).backward()
    expected = model(x)
    assert relative_error(found.float(), expected) < 0.1
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_nin_as_printed_has_no_negative_logit_and_nin_linear_has() -> None:
    x = torch.randn(8, 1, 67, 67)
    assert (make_network("nin", size=67).eval()(x) >= 0).all()
    assert (make_network("nin-linear", size=67).eval()(x) < 0).any()


def test_vgg_takes_any_conv_arch() -> None:
    net = vgg(((1, 8), (3, 12)), num_classes=3, in_channels=2, image_size=20)
    assert net(torch.randn(2, 2, 20, 20)).shape == (2, 3)
    assert [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)] == [8, 12, 12, 12]


# LeNet by hand


def lenet_by_hand(name: str, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Compute LeNet by the paper's arithmetic: unfold and matrix products, without layers of torch (eval mode)."""

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
def test_lenet_matches_its_arithmetic(name: str) -> None:
    model = make_network(name).double()
    model(torch.randn(64, 1, 28, 28, dtype=torch.float64))  # moves the running statistics from 0 and 1
    model.eval()
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(model(x), lenet_by_hand(name, model.state_dict(), x), rtol=1e-10, atol=1e-12)


def test_xavier_uniform_changes_only_weights() -> None:
    model = make_network("lenet-bn")
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


def test_an_unknown_model_suggests_similar_names() -> None:
    with pytest.raises(CnnlabError, match=r"'lenett'.*lenet\b"):
        make_network("lenett")
    with pytest.raises(CnnlabError, match="'tim'.*timm"):
        make_network("tim:resnet18")


@every_family
def test_every_operation_is_deterministic_on_a_gpu(name: str) -> None:
    """No network uses an operation for which torch.use_deterministic_algorithms would raise an error in training."""
    seen: set[str] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    size = smallest_size(name)
    with torch.device("meta"):
        model, x = make_network(name, size=size), torch.zeros(4, 1, size, size)
        with Watch():
            model(x).sum().backward()
    assert "convolution_backward" in seen
    assert not seen & {
        "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "avg_pool3d_backward", "put_", "histc",
        "upsample_bilinear2d_backward", "reflection_pad2d_backward", "replication_pad2d_backward", "scatter_reduce",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("name", ["lenet-bn-scratch", "nin-small", "airbench96"])
def test_compiled_training_gives_the_same_losses(name: str) -> None:
    """Three steps, compiled to machine code, give the same losses as uncompiled ones."""
    size = smallest_size(name)
    x, y = torch.rand(8, 1, size, size), torch.arange(8)
    losses: list[list[float]] = []
    for compiled in (False, True):
        model = make_network(name, size=size)
        torch._dynamo.reset()
        forward = torch.compile(model) if compiled else model
        # With larger updates, a rounding error of the first step grows to 1% of the third step's loss on some CPUs.
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


def test_compiled_head_of_airbench_takes_one_maximum() -> None:
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
