"""Optimizers and schedules against torch's and against plain arithmetic."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cnnlab import train
from cnnlab.device.precision import PRECISIONS
from cnnlab.io.errors import CnnlabError
from cnnlab.models import build_model
from cnnlab.models.airbench import Whitening
from cnnlab.recipe import SCHEDULES, Recipe
from cnnlab.training import muon
from cnnlab.training.muon import Muon, orthogonalize
from cnnlab.training.optim import learning_rate, make_optimizer
from cnnlab.training.step import GuardedStep, train_step


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 1000))
def test_orthogonalize_keeps_singular_vectors_and_equalizes_values(rows: int, columns: int, seed: int) -> None:
    # Different singular values. The iteration starts by scaling to norm 1; all are above 0.02 then.
    u, _, v = torch.linalg.svd(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double())
    k = min(rows, columns)
    matrix = u[:, :k] @ torch.linspace(0.1, 1, k).double().diag() @ v[:k]
    found = u[:, :k].T @ orthogonalize(matrix) @ v[:k].T
    torch.testing.assert_close(found - found.diagonal().diag(), torch.zeros_like(found), atol=1e-8, rtol=0)
    assert found.diagonal().min() > 0.67
    assert found.diagonal().max() < 1.22


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 100))
def test_orthogonalize_in_bfloat16_is_close(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    exact, found = orthogonalize(matrix), orthogonalize(matrix, precision=torch.bfloat16)
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact.flatten(), found.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muons_adam_matches_torchs_adamw(weight_decay: float) -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape).double()) for shape in ((4, 3), (5,), (2, 2))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    a = Muon([{"params": ours, "adam": True, "lr_scale": 0.5, "weight_decay": weight_decay}], lr=0.02, momentum=0.6)
    b = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.95), weight_decay=weight_decay)
    for number in range(6):
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            taking_part = i != 1 or number > 2  # a weight that joins later has its own step count
            one.grad = torch.randn(one.shape).double() if taking_part else None
            other.grad = one.grad
        a.step()
        b.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-9, atol=1e-12)


def test_muon_matches_torchs_muon() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(16, 40)), None
    with torch.no_grad():
        ours *= 4 / ours.norm()  # the norm that our Muon keeps: the square root of 16 outputs
    theirs = nn.Parameter(ours.detach().clone())
    a = Muon([{"params": [ours]}], lr=0.05, momentum=0.6)
    b = torch.optim.Muon([theirs], lr=0.05, momentum=0.6, weight_decay=0.0, ns_steps=3)
    for _ in range(5):
        gradient = torch.randn(16, 40)
        before = ours.detach().clone()
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
        step = theirs.detach() - before
        # torch iterates in bfloat16, so three digits agree
        assert torch.nn.functional.cosine_similarity((ours - before).flatten(), step.flatten(), dim=0) > 0.999
        assert (ours - before).norm().item() == pytest.approx(step.norm().item(), rel=0.02)
        with torch.no_grad():  # start the next step from the same weights, with the norm 4 that ours keeps
            theirs.copy_(ours * (4 / ours.norm()))
            ours.copy_(theirs)


@settings(deadline=None, max_examples=30)
@given(
    many=st.integers(1, 4),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    rounds=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_batched_orthogonalize_matches_single(many: int, rows: int, columns: int, rounds: int, seed: int) -> None:
    matrices = torch.randn(many, rows, columns, generator=torch.Generator().manual_seed(seed)).double()
    matrices *= torch.arange(many).double()[:, None, None]  # of different norms; one is zero
    together = orthogonalize(matrices, rounds)
    for one, found in zip(matrices, together, strict=True):
        torch.testing.assert_close(found, orthogonalize(one, rounds), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_matches_a_loop_over_filters(layout: torch.memory_format) -> None:
    """Muon updates filters of the same shape together. The loop updates each alone, as in the source."""
    torch.manual_seed(0)
    shapes = [(8, 3, 3, 3), (6, 8, 3, 3), (8, 3, 3, 3), (6, 8, 1, 1), (8, 3, 3, 3), (2, 2, 2, 2)]
    ours = [nn.Parameter(torch.randn(shape).double().to(memory_format=layout)) for shape in shapes]
    plain = [p.detach().clone() for p in ours]
    moments = [torch.zeros_like(p) for p in plain]
    optimizer = Muon([{"params": ours}], lr=0.1, momentum=0.6)
    for _ in range(4):
        for i, p in enumerate(ours):
            gradient = torch.randn(p.shape).double()
            p.grad = gradient.clone().to(memory_format=layout) if i != 1 else None  # a filter without a gradient
            if i == 1:
                continue
            moments[i] = 0.6 * moments[i] + gradient
            turn = (gradient + 0.6 * moments[i]).reshape(len(p), -1)
            turn = turn / turn.norm()
            wide = turn if turn.shape[0] <= turn.shape[1] else turn.T
            for _ in range(3):
                a = wide @ wide.T
                wide = 3.4445 * wide + (-4.7750 * a + 2.0315 * a @ a) @ wide
            turn = wide if turn.shape[0] <= turn.shape[1] else wide.T
            plain[i] = plain[i] * (math.sqrt(len(p)) / plain[i].norm()) - 0.1 * turn.reshape(p.shape)
        optimizer.step()
        for found, expected in zip(ours, plain, strict=True):
            torch.testing.assert_close(found.detach(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("settings", [{"momentum": 0.9, "nesterov": True}, {"optimizer": "adamw"}])
def test_fused_update_matches_the_plain_one(settings: dict[str, Any]) -> None:
    recipe = Recipe(weight_decay=0.1, learning_rate=0.05, **settings)
    torch.manual_seed(0)
    ours, plain = build_model("lenet-bn", image_size=28), build_model("lenet-bn", image_size=28)
    plain.load_state_dict(ours.state_dict())
    a, b = make_optimizer(ours, recipe), make_optimizer(plain, recipe)
    assert all(group["fused"] for group in a.param_groups)
    for group in b.param_groups:
        group.update(fused=False, foreach=False)
    for _ in range(5):
        for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-5, atol=1e-6)


def test_muon_updates_other_parameters_by_adamw() -> None:
    recipe = Recipe(optimizer="muon", learning_rate=0.2, other_learning_rate=0.01, weight_decay=0.1, momentum=0.6)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    theirs = {name: nn.Parameter(p.detach().clone()) for name, p in model.named_parameters() if p.ndim != 4}
    groups = [
        {"params": [p for p in theirs.values() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in theirs.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer, reference = make_optimizer(model, recipe), torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))
    for step in range(4):
        rate = 1 - step / 4
        for group in optimizer.param_groups:
            group["lr"] = 0.2 * rate
        for group in reference.param_groups:
            group["lr"] = 0.01 * rate
        for name, p in model.named_parameters():
            p.grad = torch.randn(p.shape)
            if name in theirs:
                theirs[name].grad = p.grad.clone()
        optimizer.step()
        reference.step()
    for name, p in model.named_parameters():
        if name in theirs:
            torch.testing.assert_close(p.detach(), theirs[name].detach(), rtol=1e-5, atol=1e-7)


def test_muon_keeps_the_norm_of_filters() -> None:
    model = build_model("airbench94", in_channels=3)
    optimizer = make_optimizer(model, Recipe(optimizer="muon", learning_rate=0.24, momentum=0.6))
    for _ in range(3):
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
    for p in model.parameters():
        if p.ndim == 4:
            moved = 0.24 * 1.5 * math.sqrt(len(p))  # the most that one update can add
            assert abs(p.norm().item() - math.sqrt(len(p))) < moved


@pytest.mark.parametrize(("kind", "products"), [("float32", None), ("bfloat16", torch.bfloat16), ("float16", None)])
def test_muon_computes_products_in_the_chosen_precision(
    kind: str, products: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.dtype | None] = []
    recipe = Recipe(
        optimizer="muon", learning_rate=0.24, momentum=0.6, precision=kind, epochs=1, limit=64, image_size=28
    )
    real = muon.orthogonalize

    def seen(matrix: torch.Tensor, precision: torch.dtype | None = None) -> torch.Tensor:
        asked.append(precision)
        return real(matrix, precision=precision)

    monkeypatch.setattr(muon, "orthogonalize", seen)
    if kind == "float16":  # a CPU cannot train in float16
        model = build_model("lenet-bn")
        optimizer = make_optimizer(model, recipe, PRECISIONS[kind])
        model(torch.rand(2, 1, 28, 28)).sum().backward()
        optimizer.step()
    else:
        train(recipe, threads=1, device="cpu")
    assert asked
    assert set(asked) == {products}


def test_muon_with_learning_rate_zero_is_an_error() -> None:
    with pytest.raises(CnnlabError, match=r"learning_rate=0\.0.*muon"):
        Recipe(optimizer="muon", learning_rate=0)


def test_step_schedule_matches_torch() -> None:
    recipe = Recipe(schedule="step", learning_rate=0.5, decay=0.9, decay_every=4, epochs=20)
    dummy = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = torch.optim.lr_scheduler.StepLR(dummy, step_size=4, gamma=0.9)
    for epoch in range(20):
        for batch in range(7):
            assert learning_rate(recipe, epoch * 7 + batch, 140) == pytest.approx(theirs.get_last_lr()[0])
        dummy.step()
        theirs.step()


@given(steps=st.integers(1, 200), up=st.floats(0, 1), down=st.floats(0, 1), peak=st.sampled_from([0.1, 2.0]))
def test_trapezoid_matches_its_definition(steps: int, up: float, down: float, peak: float) -> None:
    up = min(up, 1 - down)
    recipe = Recipe(schedule="trapezoid", learning_rate=peak, warmup=up, cooldown=down)
    rises = math.ceil(up * steps)  # updates of the warm-up, the last of them at the peak
    for step in range(steps):
        height = peak
        if step < rises:
            height = peak * (step + 1) / rises
        left = steps - step
        if left < down * steps:
            height = min(height, peak * left / (down * steps))
        assert learning_rate(recipe, step, steps) == pytest.approx(height, rel=1e-9)


@given(schedule=st.sampled_from(SCHEDULES), steps=st.integers(1, 300), up=st.floats(0, 0.5), down=st.floats(0, 0.5))
def test_learning_rates_rise_to_the_peak_and_fall(schedule: str, steps: int, up: float, down: float) -> None:
    recipe = Recipe(schedule=schedule, learning_rate=0.4, warmup=up, cooldown=down, epochs=1)
    rates = [learning_rate(recipe, step, steps) for step in range(steps)]
    assert all(0 < rate <= 0.4 * (1 + 1e-12) for rate in rates)
    peak = rates.index(max(rates))
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_schedules_have_the_expected_first_largest_and_last_rates() -> None:
    def first_largest_and_last(**changes: Any) -> tuple[float, float, float]:
        rates = [learning_rate(Recipe(learning_rate=1, **changes), step, 100) for step in range(100)]
        return pytest.approx(rates[0]), pytest.approx(max(rates)), pytest.approx(rates[-1])

    assert first_largest_and_last(schedule="constant") == (1, 1, 1)
    assert first_largest_and_last(schedule="cosine") == (1, 1, 0.5 * (1 + math.cos(math.pi * 0.99)))
    assert first_largest_and_last(schedule="one-cycle", warmup=0.25) == (0.04, 1, 0.01 / 0.75)
    assert first_largest_and_last(schedule="trapezoid", warmup=0.1, cooldown=0.2) == (0.1, 1, 0.05)
    assert first_largest_and_last(schedule="trapezoid", warmup=0, cooldown=0) == (1, 1, 1)
    assert first_largest_and_last(schedule="trapezoid", warmup=0, cooldown=1) == (1, 1, 0.01)
    assert first_largest_and_last(schedule="trapezoid", warmup=1, cooldown=0) == (0.01, 1, 1)
    with pytest.raises(CnnlabError, match=r"warmup=0\.7.*cooldown=0\.4"):
        Recipe(schedule="trapezoid", warmup=0.7, cooldown=0.4)


@pytest.mark.parametrize("channels", [1, 3])
def test_whitening_layer_whitens(channels: int) -> None:
    torch.manual_seed(0)
    # Neighbouring pixels are similar, as in photographs. The images are centred, as for the network.
    images = nn.functional.avg_pool2d(torch.randn(200, channels, 18, 18), 3, stride=1)
    layer = Whitening(channels)
    layer.fit(images - images.mean(), least=0.0)
    out = layer(images - images.mean()) - layer.bias.view(1, -1, 1, 1)
    n = 4 * channels
    values = out.detach().transpose(0, 1).flatten(1)[:n]
    torch.testing.assert_close(values @ values.T / values.shape[1], torch.eye(n), atol=2e-3, rtol=0)
    torch.testing.assert_close(out[:, n:], -out[:, :n])
    strength = layer.weight.detach()[:n].flatten(1).norm(dim=1)
    assert (strength.diff() > 0).all()  # the strongest component first, so its filter is the smallest
    assert "weight" in dict(layer.named_buffers())
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


@pytest.mark.parametrize("how", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize(
    "step", [train_step, GuardedStep(skip_nonfinite=True), GuardedStep(torch.amp.GradScaler("cpu"))]
)
def test_gradient_clipping_matches_torch(how: str, step: Any) -> None:
    recipe = Recipe(optimizer=how, learning_rate=0.1, momentum=0.0 if how == "adamw" else 0.9, clip_norm=0.05)
    nets = []
    for clipped in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 3))
        optimizer = make_optimizer(net, recipe if clipped else recipe.changed(clip_norm=0.0))
        for _ in range(3):
            x, y = torch.randn(8, 2, 6, 6), torch.arange(8) % 3
            if clipped:
                step(net, optimizer, x, y)
                gradients = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
                assert gradients.norm().item() == pytest.approx(0.05, rel=1e-4)
            else:
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                assert nn.utils.clip_grad_norm_(net.parameters(), 0.05) > 0.1  # there was something to clip
                optimizer.step()
        nets.append(net)
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_small_gradients_are_not_clipped() -> None:
    net = nn.Linear(5, 3)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = make_optimizer(net, Recipe(learning_rate=1.0, clip_norm=100.0))
    train_step(net, optimizer, torch.randn(4, 5), torch.arange(4) % 3)
    for p, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(p, old - p.grad)  # type: ignore[operator]
