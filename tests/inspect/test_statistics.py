"""Layer statistics: against their definitions, with planted faults, and without advice for a healthy network."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab import Run, load_images, load_model
from cnnlab.inspect.statistics import LayerStatistics, layer_statistics


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.MaxPool2d(2), nn.Flatten(),
                         nn.Linear(36, 8), nn.Sigmoid(), nn.Linear(8, 3))  # fmt: skip


def batches(count: int = 40) -> list[tuple[Tensor, Tensor | None]]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(count, 1, 8, 8, generator=generator), torch.randint(0, 3, (count,), generator=generator)
    return list(zip(x.split(16), y.split(16), strict=True))


def by_path(found: list[LayerStatistics]) -> dict[str, LayerStatistics]:
    return {layer.path: layer for layer in found}


def test_figures_match_their_definitions() -> None:
    model = network().train()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        model[1].bias[2] = -100.0  # a unit that is never active
    before = {key: value.clone() for key, value in model.state_dict().items()}
    parts = batches()
    found = by_path(layer_statistics(model, parts))
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert list(found) == ["0", "1", "2", "4", "6", "7", "8"]
    model.eval()
    x = torch.cat([x for x, _ in parts])
    with torch.no_grad():
        outputs = {}
        for i, module in enumerate(model):
            x = module(x)
            outputs[str(i)] = x
    for path, layer in found.items():
        output = outputs[path].double()
        assert layer.mean == pytest.approx(output.mean().item(), abs=1e-6)
        assert layer.std == pytest.approx(output.std(correction=0).item())
        assert layer.image_std == pytest.approx(output.var(0, correction=0).mean().sqrt().item())
        assert layer.zeros == pytest.approx((output == 0).double().mean().item())
    assert (found["2"].units, found["2"].dead, found["0"].dead) == (4, 1, None)
    assert found["1"].gamma == (1.0, 1.75, 2.5, 3.25, 4.0)
    assert found["1"].beta == (-100.0, -25.0, 0.0, 0.0, 0.0)
    assert found["7"].saturated == ((outputs["7"] < 0.01) | (outputs["7"] > 0.99)).double().mean().item()
    images, labels = parts[0]
    F.cross_entropy(model(images), labels).backward()
    gradient = torch.cat([p.grad.flatten() for p in model[6].parameters() if p.grad is not None])
    assert found["6"].gradient_norm == pytest.approx(gradient.norm().item())
    assert found["6"].weight_norm == pytest.approx(
        torch.cat([p.flatten() for p in model[6].parameters()]).norm().item()
    )
    assert found["2"].weight_norm is found["2"].gradient_norm is None


def test_without_labels_there_are_no_gradients() -> None:
    model = network()
    with torch.inference_mode():
        found = layer_statistics(model, [(x, None) for x, _ in batches()])
        assert all(layer.gradient_norm is None for layer in found)
        assert any(layer.gradient_norm for layer in layer_statistics(model, batches()))


def test_a_layer_whose_first_output_is_not_floating_point_is_measured() -> None:
    class Sign(nn.Module):  # returns booleans first, then floating-point values
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Sign.calls += 1
            return x > 0 if Sign.calls % 2 else x * 2

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sign, self.head = Sign(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            first: Tensor = self.head(self.sign(self.sign(x).float()))
            return first

    x = torch.randn(6, 4)
    found = by_path(layer_statistics(Net(), [(x, None)]))
    doubled = (x > 0).double() * 2
    assert found["sign"].mean == pytest.approx(doubled.mean().item())
    assert found["sign"].image_std == pytest.approx(doubled.var(0, correction=0).mean().sqrt().item())


def test_planted_faults_are_found() -> None:
    healthy = by_path(layer_statistics(network(), batches()))
    assert {layer.advice for layer in healthy.values()} == {""}

    def advice(path: str, change: str) -> str:
        model = network()
        with torch.no_grad():
            if change == "dead":
                model[1].bias[:2] = -100.0
            elif change == "off":
                model[1].weight[:3] = 1e-4
            elif change == "saturated":
                model[6].weight.mul_(1000)
            elif change == "constant":
                model[6].weight.mul_(1e-5)
            elif change == "large":
                model[0].weight.mul_(1e5)
            elif change == "broken":
                model[8].weight[0, 0] = torch.nan
            elif change == "vanishing":
                model[6].bias.fill_(15.0)
        layer = by_path(layer_statistics(model, batches()))[path]
        json.dumps(layer.to_dict(), allow_nan=False)
        return layer.advice

    assert "2 of 4 units" in advice("2", "dead")
    assert "gamma" in advice("1", "off")
    assert "saturated" in advice("7", "saturated")
    assert "depends" in advice("7", "constant")
    assert "large" in advice("0", "large")
    assert "NaN" in advice("8", "broken")
    assert "gradient" in advice("6", "vanishing")


def test_a_healthy_training_gets_no_advice(digits_run: Run) -> None:
    classifier, images = load_model(digits_run), load_images("digits", "test")
    assert images is not None
    found = layer_statistics(classifier.network, [(classifier.preprocessing(images.images[:200]), images.labels[:200])])
    assert [layer.advice for layer in found if layer.advice] == []
    assert [layer.type for layer in found if layer.gamma] == ["BatchNorm2d"] * 2 + ["BatchNorm1d"] * 2
