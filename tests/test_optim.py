"""Optimisers and schedules against torch's own and against plain arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cnnlab.errors import CnnlabError
from cnnlab.models import build_model
from cnnlab.models.airbench import Whitening
from cnnlab.optim import Muon, learning_rate, make_optimizer, orthogonalized
from cnnlab.recipe import Recipe


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 1000))
def test_orthogonalizing_keeps_the_directions_and_evens_out_the_lengths(rows: int, columns: int, seed: int) -> None:
    # Singular values of different sizes; scaled to norm 1, as the iteration begins, all are above 0.02.
    u, _, v = torch.linalg.svd(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double())
    k = min(rows, columns)
    matrix = u[:, :k] @ torch.linspace(0.1, 1, k).double().diag() @ v[:k]
    found = u[:, :k].T @ orthogonalized(matrix) @ v[:k].T
    torch.testing.assert_close(found - found.diagonal().diag(), torch.zeros_like(found), atol=1e-8, rtol=0)
    assert found.diagonal().min() > 0.67
    assert found.diagonal().max() < 1.22


def test_muon_turns_as_torchs_muon_does() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(16, 40)), None
    with torch.no_grad():
        ours *= 4 / ours.norm()  # at the length that ours keeps: the root of 16 outputs
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
        # torch's iterates in bfloat16, so its digits are three
        assert torch.nn.functional.cosine_similarity((ours - before).flatten(), step.flatten(), dim=0) > 0.999
        assert (ours - before).norm().item() == pytest.approx(step.norm().item(), rel=0.02)
        with torch.no_grad():  # the next step from the same place, which ours scales to length 4
            theirs.copy_(ours * (4 / ours.norm()))
            ours.copy_(theirs)


def test_what_is_no_filter_goes_by_adamw() -> None:
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


def test_filters_keep_their_length() -> None:
    model = build_model("airbench94", in_channels=3)
    optimizer = make_optimizer(model, Recipe(optimizer="muon", learning_rate=0.24, momentum=0.6))
    for _ in range(3):
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
    for p in model.parameters():
        if p.ndim == 4:
            moved = 0.24 * 1.5 * math.sqrt(len(p))  # what one update can add at most
            assert abs(p.norm().item() - math.sqrt(len(p))) < moved


def test_muon_without_a_learning_rate_is_refused() -> None:
    with pytest.raises(CnnlabError, match=r"learning_rate=0\.0: muon"):
        Recipe(optimizer="muon", learning_rate=0)


def test_step_schedule_is_torchs() -> None:
    recipe = Recipe(schedule="step", learning_rate=0.5, decay=0.9, decay_every=4, epochs=20)
    dummy = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = torch.optim.lr_scheduler.StepLR(dummy, step_size=4, gamma=0.9)
    for epoch in range(20):
        for batch in range(7):
            assert learning_rate(recipe, epoch * 7 + batch, 140) == pytest.approx(theirs.get_last_lr()[0])
        dummy.step()
        theirs.step()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_whitening_layer_whitens(channels: int) -> None:
    torch.manual_seed(0)
    # Neighbours alike, as in photographs; centred, as the network sees them.
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
