"""Each network against the manual's numbers and against an independent computation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.errors import CnnlabError
from cnnlab.models import MODELS, build_model
from cnnlab.optim import initialize

PARAMETERS = {"lenet": 61_706, "lenet-bn": 44_878}  # the manual's

# (type, output shape) of every layer for one 28x28 grey image, as the manual's sources print them
SHAPES = {
    "lenet": [
        ("Conv2d", (6, 28, 28)), ("Sigmoid", (6, 28, 28)), ("AvgPool2d", (6, 14, 14)), ("Conv2d", (16, 10, 10)),
        ("Sigmoid", (16, 10, 10)), ("AvgPool2d", (16, 5, 5)), ("Flatten", (400,)), ("Linear", (120,)), ("Sigmoid", (120,)),
        ("Linear", (84,)), ("Sigmoid", (84,)), ("Linear", (10,)),
    ],
    "lenet-bn": [
        ("Conv2d", (6, 24, 24)), ("BatchNorm2d", (6, 24, 24)), ("Sigmoid", (6, 24, 24)), ("AvgPool2d", (6, 12, 12)),
        ("Conv2d", (16, 8, 8)), ("BatchNorm2d", (16, 8, 8)), ("Sigmoid", (16, 8, 8)), ("AvgPool2d", (16, 4, 4)),
        ("Flatten", (256,)), ("Linear", (120,)), ("BatchNorm1d", (120,)), ("Sigmoid", (120,)), ("Linear", (84,)),
        ("BatchNorm1d", (84,)), ("Sigmoid", (84,)), ("Linear", (10,)),
    ],
}  # fmt: skip

every_model = pytest.mark.parametrize("name", sorted(MODELS))


def make(name: str, channels: int = 1, classes: int = 10, size: int = 28) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, num_classes=classes, in_channels=channels, image_size=size)


def test_every_model_has_its_numbers_here() -> None:
    assert PARAMETERS.keys() == SHAPES.keys() == MODELS.keys()


@every_model
def test_parameter_count_is_the_manuals(name: str) -> None:
    assert sum(p.numel() for p in make(name).parameters()) == PARAMETERS[name]


@every_model
def test_shapes_layer_by_layer(name: str) -> None:
    model = make(name).eval()
    assert isinstance(model, nn.Sequential)
    x, found = torch.zeros(1, 1, 28, 28), []
    for layer in model:
        x = layer(x)
        found.append((type(layer).__name__, tuple(x.shape[1:])))
    assert found == SHAPES[name]


@every_model
@pytest.mark.parametrize(("channels", "classes", "size"), [(1, 10, 28), (3, 2, 32), (4, 7, 45), (1, 100, 64)])
def test_other_inputs(name: str, channels: int, classes: int, size: int) -> None:
    model = make(name, channels, classes, size).eval()
    x = torch.randn(5, channels, size, size)
    y = model(x)
    assert y.shape == (5, classes)
    assert torch.equal(y, model(x))  # deterministic
    torch.testing.assert_close(model(x[:1]), y[:1])  # a batch of one


@every_model
def test_smallest_image_is_named_and_works(name: str) -> None:
    with pytest.raises(CnnlabError, match="at least") as caught:
        make(name, size=8)
    smallest = int(str(caught.value).split("at least ")[1].split("x")[0])
    assert make(name, size=smallest).eval()(torch.zeros(1, 1, smallest, smallest)).shape == (1, 10)
    with pytest.raises(CnnlabError, match=f"at least {smallest}x{smallest} pixels, not {smallest - 1}x{smallest - 1}"):
        make(name, size=smallest - 1)


@every_model
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    model = make(name)
    F.cross_entropy(model(torch.randn(8, 1, 28, 28)), torch.arange(8)).backward()
    for path, p in model.named_parameters():
        assert p.grad is not None, path
        # a bias before batch norm has no effect: its gradient is zero but for rounding
        assert torch.isfinite(p.grad).all(), path
        if "bias" not in path:
            assert p.grad.abs().sum() > 0, path


@every_model
def test_overfits_two_batches(name: str) -> None:
    model = make(name)
    x, y = torch.randn(32, 1, 28, 28), torch.randint(0, 10, (32,))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(400):
        part = slice(0, 16) if step % 2 else slice(16, 32)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[part]), y[part])
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


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
