"""Weights and training states on the disk: safetensors with a checksum, written whole or not at all, never a pickle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cnnlab.device import random_state, set_random_state
from cnnlab.errors import CnnlabError, reason
from cnnlab.files import write_atomic
from cnnlab.optim import Average


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the model's parameters and buffers."""
    _write(path, _on_host(model.state_dict()), {})


def load_weights(path: Path, model: nn.Module) -> None:
    """Read into `model` what `save_weights` wrote.

    Raises: CnnlabError, naming the file, where it is missing, damaged or of another network.
    """
    tensors, _ = _read(path)
    _fill(path, model, tensors)


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    progress: dict[str, Any],
    average: Average | None = None,
) -> None:
    """Write all that the next epoch depends on: model, optimiser, average, random states, `progress` (plain values)."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    optimizer_state = optimizer.state_dict()
    plain: dict[str, dict[str, Any]] = {}
    for index, state in optimizer_state["state"].items():
        plain[str(index)] = {}
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                plain[str(index)][key] = value
    if average is not None:
        tensors.update({f"average.{k}": v for k, v in average.tensors.items()})
    random_tensors, random_values = random_state(device)
    tensors.update({f"random.{k}": v for k, v in random_tensors.items()})
    values = {
        "progress": progress,
        "optimizer": {"state": plain, "param_groups": optimizer_state["param_groups"]},
        "random": random_values,
    }
    _write(path, _on_host(tensors), values)


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    average: Average | None = None,
) -> dict[str, Any]:
    """Put back what `save_checkpoint` wrote, and return its `progress`. Raises: CnnlabError, naming the file."""
    tensors, values = _read(path)
    if average is not None and not any(name.startswith("average.") for name in tensors):
        raise CnnlabError(
            f"{path} holds no averaged weights; set average=none in the run's recipe.json, or train again"
        )
    try:
        _fill(path, model, {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        state = {int(i): dict(v) for i, v in values["optimizer"]["state"].items()}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, key = rest.partition(".")
                state[int(index)][key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": values["optimizer"]["param_groups"]})
        for parameter, kept in optimizer.state.items():
            # Files hold contiguous tensors; a fused update walks through memory, so the order must be the parameter's.
            for key, value in kept.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    kept[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        if average is not None:
            for name, tensor in average.tensors.items():
                tensor.copy_(tensors[f"average.{name}"])
        random_tensors = {k.removeprefix("random."): v for k, v in tensors.items() if k.startswith("random.")}
        set_random_state(device, random_tensors, values["random"])
        progress: dict[str, Any] = values["progress"]
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CnnlabError(f"{path} is damaged or of another version: {reason(error)}; train again") from error
    return progress


def _on_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses channels_last tensors and shared storage: contiguous copies on the host are neither.
    return {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}


def _checksum(tensors: dict[str, Tensor], values: str) -> str:
    digest = hashlib.blake2b(values.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(path: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    write_atomic(path, safetensors.torch.save(tensors, _metadata(tensors, values)))


def _metadata(tensors: dict[str, Tensor], values: dict[str, Any]) -> dict[str, str]:
    # One entry: safetensors writes several in random order, and equal weights should be equal files.
    checksum = _checksum(tensors, json.dumps(values))
    return {"cnnlab": json.dumps({"values": values, "blake2b": checksum})}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: what is mapped from the file would keep it open, and some systems cannot replace an open file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no dict
    except FileNotFoundError as error:
        raise CnnlabError(f"{path} does not exist; is its folder a run that has finished an epoch?") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise CnnlabError(f"{path} is damaged: {reason(error)}; use other weights or train again") from error
    try:
        values: dict[str, Any] = json.loads(metadata["cnnlab"])["values"]
    except (KeyError, TypeError, ValueError) as error:
        raise CnnlabError(f"{path} is damaged, or not written by cnnlab: its header lacks our entry") from error
    # The whole header is compared, so that no flipped bit in it goes unseen.
    if metadata != _metadata(tensors, values):
        raise CnnlabError(f"{path} is damaged: its checksum is wrong; use other weights or train again")
    return tensors, values


def _fill(path: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CnnlabError(f"{path} holds the weights of another network: {reason(error)[:200]}") from error
