"""A folder with weights as safetensors, everything else as JSON, and a reader in plain PyTorch, without cnnlab.

The network is written as network.py: its operations as torch.export traces them, one per line. So any network can be
loaded without the code that built it.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, fx
from torch.export.graph_signature import InputKind

from cnnlab.export.conversion import not_convertible, quiet
from cnnlab.inference import Classifier
from cnnlab.io.errors import CnnlabError

FILES = ("model.json", "model.safetensors", "network.py", "reader.py")
_HEAD = '''"""The network's operations, as torch.export traced them: weights and images in, logits out."""

import torch
from torch import device, inf, nan


'''


def save_tensors(classifier: Classifier, description: dict[str, Any], folder: Path) -> None:
    """Write the files into a new folder. Raise CnnlabError for a network that torch.export cannot trace."""
    p = classifier.preprocessing
    x = torch.zeros(2, p.channels, p.image_size, p.image_size)
    try:
        with quiet(), torch.no_grad():
            network = classifier.network.eval()
            program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
            program = program.run_decompositions({})  # to operations that PyTorch runs itself, and none for training
    except Exception as error:
        raise not_convertible(error, "plain PyTorch operations") from error
    tensors: dict[str, Tensor] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            name = str(spec.target)
            value = program.state_dict[name] if name in program.state_dict else program.constants[name]
            tensors[name] = value.detach().clone().contiguous()
    folder.mkdir()
    # Not save_file, whose files are private: these follow the user's umask.
    (folder / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    about = json.dumps({**description, "inputs": list(tensors)}, indent=2, ensure_ascii=True)
    (folder / "model.json").write_text(about + "\n", encoding="utf-8")
    (folder / "network.py").write_text(_HEAD + _source(program.graph_module), encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("reader.py"), folder / "reader.py")


def _source(module: fx.GraphModule) -> str:
    """Return the module's `forward` as a function."""
    source = module.code.strip()
    source = re.sub(r"def forward\(self, ?", "def forward(", source)
    source = re.sub(r"return \((\w+),\)", r"return \1", source)
    # Drop the checks of shapes, which hold for every batch.
    lines = [line for line in source.splitlines() if "_assert" not in line and "_guards_fn" not in line]
    text = "\n".join(lines) + "\n"
    if "self." in text:
        raise CnnlabError("this network cannot be written as plain PyTorch operations alone; use --to onnx")
    return text


def load_tensors(folder: Path) -> Callable[[Tensor], Tensor]:
    """Return the reader's function: (B, C, native_size, native_size) uint8 -> probabilities (B, K).

    The folder must be one that `save_tensors` has just written: its code is run.
    """
    space: dict[str, Any] = {"__file__": str(folder / "reader.py"), "__name__": "reader"}
    before, path, no_bytecode = sys.modules.pop("network", None), list(sys.path), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # no __pycache__ in the folder
    try:
        exec(compile((folder / "reader.py").read_text(encoding="utf-8"), space["__file__"], "exec"), space)  # noqa: S102
    finally:
        sys.modules.pop("network", None)
        if before is not None:
            sys.modules["network"] = before
        sys.path[:] = path
        sys.dont_write_bytecode = no_bytecode
    found: Callable[[Tensor], Tensor] = space["probabilities"]
    return found
