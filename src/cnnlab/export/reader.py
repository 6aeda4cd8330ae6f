"""Classify images with plain PyTorch and the files beside this one: python reader.py IMAGE..."""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
import network

ABOUT = json.loads((Path(__file__).parent / "model.json").read_text(encoding="utf-8"))
P = ABOUT["preprocessing"]
TENSORS = load_file(Path(__file__).parent / "model.safetensors")
WEIGHTS = [TENSORS[name] for name in ABOUT["inputs"]]


def probabilities(pixels: torch.Tensor) -> torch.Tensor:
    """(B, C, native_size, native_size) uint8 -> (B, K) float32."""
    x, size = pixels.float() / 255, P["image_size"]
    if size != P["native_size"]:
        cubic, smaller = P["interpolation"] == "bicubic", size < P["native_size"]
        x = F.interpolate(x, size=(size, size), mode="bicubic" if cubic else "bilinear", antialias=smaller)
        x = x.clamp(0, 1) if cubic else x
    x = (x - torch.tensor(P["mean"])[:, None, None]) / torch.tensor(P["std"])[:, None, None]
    with torch.inference_mode():
        return (network.forward(*WEIGHTS, x) / ABOUT["temperature"]).softmax(1)


def read(path: str) -> torch.Tensor:
    """Return an 8-bit image as (1, C, native_size, native_size) uint8; for others, see "decoding" in model.json."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, P["background"]), image)
    image, size = image.convert("L" if P["channels"] == 1 else "RGB"), (P["native_size"],) * 2
    if image.size != size:
        fit = {"pad": ImageOps.pad, "crop": ImageOps.fit, "stretch": Image.Image.resize}[P["fit"]]
        image = fit(image, size, Image.Resampling[P["interpolation"].upper()])
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*size, -1).permute(2, 0, 1)[None]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for name in sys.argv[1:]:
        p, k = probabilities(read(name))[0].max(0)
        print(name, "none of these" if p < ABOUT["threshold"] else ABOUT["classes"][k], f"{p:.4f}")
