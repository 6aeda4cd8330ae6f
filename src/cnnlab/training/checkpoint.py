"""Weights and checkpoints on the disk: safetensors with a checksum, written atomically, never a pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cnnlab.device.determinism import random_state, set_random_state
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.files import write_atomic
from cnnlab.training.average import Average
from cnnlab.training.optim import STATE, fill_momentum


class Damaged(CnnlabError):
    """The file has changed since it was written."""


def save_weights(path: Path, model: nn.Module, about: dict[str, Any] | None = None) -> None:
    """Write the model's parameters and buffers, and plain values `about` them. Raise OSError."""
    _write(path, _on_host(model.state_dict()), about or {})


def load_weights(path: Path, model: nn.Module) -> None:
    """Load into `model` the weights that `save_weights` wrote.

    Raise CnnlabError, naming the file, if it is missing, damaged or from another network.
    """
    tensors, _ = _read(path)
    _fill(path, model, tensors)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors that `save_weights` wrote, by name. Raise like `load_weights`."""
    return _read(path)[0]


def check_weights(path: Path, model: nn.Module) -> None:
    """Check that the file has tensors of the names and shapes of `model`, which may be on the meta device.

    Only the file's header is read. Raise like `load_weights`.
    """
    with _opened(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
    for name, own in model.state_dict().items():
        if shapes.get(name) != tuple(own.shape):
            raise CnnlabError(
                f"{path} holds the weights of another network: its {name} is {shapes.get(name, 'not there')}, not "
                f"{tuple(own.shape)}; use those that the run was saved with"
            )


def weights_metadata(path: Path) -> dict[str, Any]:
    """Return the `about` values that `save_weights` wrote, after checking the whole file. Raise like `load_weights`."""
    return _read(path)[1]


def previous_checkpoint(path: Path) -> Path:
    """Return the path of the checkpoint before the current one, which is at `path`."""
    return path.with_name(f"{path.stem}.before{path.suffix}")


def has_checkpoint(path: Path) -> bool:
    """Return whether there is a checkpoint at `path`, or at least the previous one."""
    return path.exists() or previous_checkpoint(path).exists()


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    progress: dict[str, Any],
    average: Average | None = None,
    submit: Callable[[Callable[[], None]], None] = lambda write: write(),
) -> None:
    """Write all that the next step depends on: model, optimizer, average, random states, `progress` (plain values).

    The checkpoint that was at `path` becomes `previous_checkpoint`. submit: called with a function that writes a copy
    of the current state; may call it later. Raise OSError.
    """
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
    copies = _on_host(tensors)
    submit(lambda: _write(path, copies, values, before=previous_checkpoint(path)))


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    average: Average | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Restore what `save_checkpoint` wrote and return its `progress`.

    If the checkpoint is damaged or missing, the previous one is used, and `log` gets a line. Raise CnnlabError, naming
    the file, if neither is intact.
    """
    tensors, values = _newest(path, log)
    if average is not None and not any(name.startswith("average.") for name in tensors):
        raise CnnlabError(f"{path} holds no averaged weights, which the recipe asks for; train again")
    try:
        _fill(path, model, {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        state = {int(i): dict(v) for i, v in values["optimizer"]["state"].items()}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, key = rest.partition(".")
                state[int(index)][key] = tensor
        # The settings are the recipe's, not the file's; the rest must fit this optimizer.
        groups = optimizer.state_dict()["param_groups"]
        _check_state(optimizer, groups, values["optimizer"]["param_groups"], state)
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        for parameter, values_of in optimizer.state.items():
            # Files hold contiguous tensors; a fused update walks through memory, so the layout must be the parameter's.
            for key, value in values_of.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values_of[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        fill_momentum(optimizer)
        if average is not None:
            for name, tensor in average.tensors.items():
                _check_like(name, tensors[f"average.{name}"], tensor)
                tensor.copy_(tensors[f"average.{name}"])
        random_tensors = {k.removeprefix("random."): v for k, v in tensors.items() if k.startswith("random.")}
        set_random_state(device, random_tensors, values["random"])
        progress: dict[str, Any] = values["progress"]
        if type(progress) is not dict:
            raise ValueError("its progress is not an object")
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError, OverflowError) as error:
        raise CnnlabError(f"{path} is damaged or of another version: {reason(error, 200)}; train again") from error
    return progress


def _check_state(
    optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]], saved_groups: Any, state: dict[int, dict[str, Any]]
) -> None:
    """Raise ValueError if `state` and `saved_groups` do not fit `optimizer`."""
    if [group["params"] for group in saved_groups] != [group["params"] for group in groups]:
        raise ValueError("its optimizer has other parameters")
    if not state.keys() <= {index for group in groups for index in group["params"]}:
        raise ValueError("its optimizer has other parameters")
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        own_keys = STATE["Muon.adam" if group.get("adam") else type(optimizer).__name__]
        for index, parameter in zip(group["params"], own["params"], strict=True):
            values = state.get(index)
            if values and values.keys() != own_keys:
                raise ValueError(f"its optimizer state has the keys {', '.join(values)}")
            for key, value in (values or {}).items():
                if key != "step" and value is not None:
                    _check_like(key, value, parameter)
                elif isinstance(value, Tensor):
                    _check_like(key, value, torch.tensor(0.0))
                elif type(value) not in (int, type(None)):
                    raise ValueError(f"its optimizer's {key} is not a number")


def _check_like(name: str, tensor: Any, own: Tensor) -> None:
    if not isinstance(tensor, Tensor) or tensor.shape != own.shape or tensor.dtype != own.dtype:
        raise ValueError(f"its {name} has another shape or type")


def _newest(path: Path, log: Callable[[str], None]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the content of `path`, or of `previous_checkpoint` if that file is damaged or missing."""
    before = previous_checkpoint(path)
    if not before.exists():
        return _read(path)
    if path.exists() and not path.is_file():
        raise Damaged(f"{path} is not a regular file; remove it to continue from the previous checkpoint")
    try:
        if path.exists():
            return _read(path)
        problem = f"{path} is gone"
    except Damaged as error:
        problem = str(error).partition("; ")[0]
    try:
        content = _read(before)
    except Damaged as error:
        if not before.exists():  # another process of the training has just done the following
            return _read(path)
        raise CnnlabError(f"{problem}, and {error}") from error
    with contextlib.suppress(FileNotFoundError):
        os.replace(before, path)  # noqa: PTH105 - else the next save would put the damaged one in its place
    log(f"note: {problem}; continuing from the previous checkpoint")
    return content


def _on_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # Contiguous, and copies also on the CPU: the training continues while they are written.
    as_read = torch.contiguous_format
    return {k: v.detach().to("cpu", copy=True, memory_format=as_read) for k, v in tensors.items()}


def _checksum(tensors: dict[str, Tensor], values: str) -> str:
    digest = hashlib.blake2b(values.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _write(path: Path, tensors: dict[str, Tensor], values: dict[str, Any], before: Path | None = None) -> None:
    write_atomic(path, _pieces(tensors, _metadata(tensors, values)), before)


# Names of dtypes in safetensors.
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def _pieces(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
    """Yield a safetensors file in pieces.

    The library's save_file needs no more memory (version 0.8, 500 MB: no copy, 0.35 s of CPU time; here: 0.6 s), but it
    reports a full disk without an errno and cannot be stopped halfway by the fault tests. Its `save` copies everything.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    # Wide dtypes first, as the library does, so that each is aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        yield _bytes(tensors[name])


def _bytes(tensor: Tensor) -> memoryview:
    view: memoryview = tensor.flatten().view(torch.uint8).numpy().data
    return view


def _metadata(tensors: dict[str, Tensor], values: dict[str, Any]) -> dict[str, str]:
    # One entry: safetensors writes several in random order, and equal weights should give equal files.
    checksum = _checksum(tensors, json.dumps(values))
    return {"cnnlab": json.dumps({"values": values, "blake2b": checksum})}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file. Raise CnnlabError, in one line, if it cannot be read."""
    try:
        if path.exists() and not path.is_file():
            raise Damaged(f"{path} is not a regular file; use other weights or train again")
        with safe_open(path, framework="pt") as file:
            yield file
    except CnnlabError:
        raise
    except FileNotFoundError as error:
        raise CnnlabError(f"{path} does not exist; is its folder a run that has finished an epoch?") from error
    except PermissionError as error:
        raise CnnlabError(f"cannot read {path}: {reason(error)}") from error
    except (OSError, SafetensorError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise Damaged(f"{path} is damaged: {reason(error)}; use other weights or train again") from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with _opened(path) as file:
        metadata = file.metadata() or {}
        # Copies: mapped tensors would keep the file open, and some systems cannot replace an open file.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
    try:
        values: dict[str, Any] = json.loads(metadata["cnnlab"])["values"]
        # Compare the whole header, so that a flipped bit in it is noticed.
        right = type(values) is dict and metadata == _metadata(tensors, values)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Damaged(
            f"{path} is damaged, or not written by cnnlab: its header lacks our entry; use other weights or train again"
        ) from error
    if not right:
        raise Damaged(f"{path} is damaged: its checksum is wrong; use other weights or train again")
    return tensors, values


def _fill(path: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    try:
        for name, own in model.state_dict().items():
            if name in tensors and tensors[name].dtype != own.dtype:
                raise RuntimeError(f"{name} is {tensors[name].dtype}, not {own.dtype}")
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CnnlabError(
            f"{path} holds the weights of another network: {reason(error, 200)}; use those that the run was saved with"
        ) from error
