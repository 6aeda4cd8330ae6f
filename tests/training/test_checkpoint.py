"""Weights and training states on the disk: restored to the bit, and no wrong model from a damaged file."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from cnnlab.io.errors import CnnlabError
from cnnlab.models import build_model
from cnnlab.recipe import Recipe
from cnnlab.training.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights
from cnnlab.training.optim import make_optimizer

CPU = torch.device("cpu")


def make_network(seed: int = 0, name: str = "lenet-bn") -> nn.Module:
    torch.manual_seed(seed)
    return build_model(name, num_classes=10, in_channels=1, image_size=28)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_weights_and_buffers_are_restored_exactly(tmp_path: Path) -> None:
    model = make_network()
    model(torch.randn(16, 1, 28, 28))  # changes the running statistics
    save_weights(tmp_path / "w.safetensors", model)
    other = make_network(1)
    assert not same_weights(model, other)
    load_weights(tmp_path / "w.safetensors", other)
    assert same_weights(model, other)
    # a plain safetensors file, which other tools can read
    assert safetensors.torch.load_file(tmp_path / "w.safetensors").keys() == model.state_dict().keys()


def test_channels_last_and_shared_weights_can_be_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)).to(memory_format=torch.channels_last)
    model[1].weight = model[0].weight
    save_weights(tmp_path / "w.safetensors", model)
    other = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    load_weights(tmp_path / "w.safetensors", other)
    assert same_weights(model, other)


def test_weights_of_another_network_are_an_error(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", make_network(name="lenet"))
    with pytest.raises(CnnlabError, match=r"w\.safetensors .*network"):
        load_weights(tmp_path / "w.safetensors", make_network())


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CnnlabError, match=r"w\.safetensors.*exist"):
        load_weights(tmp_path / "w.safetensors", make_network())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_truncation_or_flipped_bit_is_detected(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "w.safetensors"
    if not path.exists():
        save_weights(path, make_network(name="lenet"))
        (tmp_path / "good").write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "good").read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        # half of the draws are in the header, which holds the structure
        end = data.draw(st.sampled_from([1200, len(content)]))
        content[data.draw(st.integers(0, end - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    before = make_network(3, "lenet")
    model = make_network(3, "lenet")
    with pytest.raises(CnnlabError) as caught:
        load_weights(path, model)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert same_weights(model, before)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_restored_checkpoint_continues_to_the_same_bits(
    tmp_path: Path, optimizer: str, layout: torch.memory_format
) -> None:
    recipe = Recipe(optimizer="adamw") if optimizer == "adamw" else Recipe(momentum=0.9 * (optimizer == "momentum"))
    x, y = torch.randn(32, 1, 28, 28), torch.arange(32) % 10

    def steps(model: nn.Module, updater: torch.optim.Optimizer, count: int) -> list[float]:
        draws = []
        for _ in range(count):
            draws += [
                torch.rand(()).item(),
                random.random(),
                float(np.random.rand()),
                float(np.random.randn()),
            ]
            loss = F.cross_entropy(model(x + 0.1 * torch.randn_like(x)), y)
            updater.zero_grad()
            loss.backward()
            updater.step()
        return draws

    model = make_network().to(memory_format=layout)
    updater = make_optimizer(model, recipe)
    steps(model, updater, 3)
    save_checkpoint(tmp_path / "c.safetensors", model, updater, CPU, {"rows": [1, 2], "best": 0.1})
    draws = steps(model, updater, 3)

    again = make_network(5).to(memory_format=layout)
    updater = make_optimizer(again, recipe)
    progress = load_checkpoint(tmp_path / "c.safetensors", again, updater, CPU)
    assert progress == {"rows": [1, 2], "best": 0.1}
    assert steps(again, updater, 3) == draws
    assert same_weights(model, again)


def test_a_weights_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    model = make_network()
    save_weights(tmp_path / "w.safetensors", model)
    with pytest.raises(CnnlabError, match=r"w\.safetensors"):
        load_checkpoint(tmp_path / "w.safetensors", model, make_optimizer(model, Recipe()), CPU)


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, make_network())
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        save_weights(path, make_network(1))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
