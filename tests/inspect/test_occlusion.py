"""Occlusion: against captum, and with a planted square."""

from __future__ import annotations

import captum.attr as reference
import pytest
import torch
from torch import nn

from cnnlab import CnnlabError, build_model
from cnnlab.inspect.occlusion import default_window, occlusion


@pytest.mark.parametrize(("size", "window", "stride"), [(28, 7, 4), (20, 20, 20), (9, 1, 1)])
def test_occlusion_matches_captum(size: int, window: int, stride: int) -> None:
    torch.manual_seed(0)
    model: nn.Module = (
        build_model("lenet-bn", image_size=28) if size == 28 else nn.Sequential(nn.Flatten(), nn.Linear(size**2, 10))
    )
    model.eval()
    x, classes = torch.rand(2, 1, size, size), torch.tensor([3, 7])
    expected = reference.Occlusion(lambda x: model(x).softmax(1)).attribute(
        x, sliding_window_shapes=(1, window, window), strides=(1, stride, stride), baselines=0, target=classes
    )
    found = occlusion(model, x, classes, window=window, stride=stride)
    torch.testing.assert_close(found, expected[:, 0].detach(), atol=1e-6, rtol=1e-4)


def test_the_decisive_square_is_found() -> None:
    class Corner(nn.Module):
        """A classifier: class 1 if the upper left corner is bright."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bright = x[:, 0, :8, :8].mean((1, 2))
            return torch.stack((2 - 4 * bright, 4 * bright - 2), 1)

    x = torch.ones(1, 1, 32, 32)
    drop = occlusion(Corner(), x, torch.tensor([1]))
    assert drop[0, 4, 4] > 0.3
    assert drop[0, 16:, 16:].abs().max() == 0
    assert occlusion(Corner(), x, torch.tensor([0]))[0, 4, 4] < -0.3
    assert default_window(28) == (7, 2)
    with pytest.raises(CnnlabError, match="window"):
        occlusion(Corner(), x, torch.tensor([0]), window=33)
