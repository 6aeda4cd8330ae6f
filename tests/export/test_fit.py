"""The resizing inside an exported file gives the same bits as Pillow."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

from cnnlab.export.archive import Fit
from cnnlab.export.build import Nodes
from cnnlab.export.fit import fit_nodes
from cnnlab.io.decode import Decoding, decode

SIDES = st.integers(1, 90)


@lru_cache(maxsize=64)
def onnx_session(how: Decoding) -> onnxruntime.InferenceSession:
    g = Nodes("fit/")
    fit_nodes(g, "pixels", how, "fitted")
    values = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, ["B", how.channels, *sides])
        for name, sides in (("pixels", ["H", "W"]), ("fitted", [how.size, how.size]))
    ]
    model = helper.make_model(
        helper.make_graph(g.nodes, "fit", values[:1], values[1:]), opset_imports=[helper.make_opsetid("", 20)]
    )
    model.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def fitted(image: np.ndarray, how: Decoding) -> np.ndarray:
    answer = onnx_session(how).run(None, {"pixels": image.transpose(2, 0, 1)[None].copy()})[0]
    return np.asarray(answer)[0]


def by_pillow(image: np.ndarray, how: Decoding) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "png")
    return decode("image.png", how, file.getvalue())


@settings(max_examples=60, deadline=None)
@given(
    SIDES,
    SIDES,
    st.sampled_from((1, 2, 5, 16, 32)),
    st.sampled_from(("pad", "crop", "stretch")),
    st.sampled_from(("bilinear", "bicubic")),
    st.sampled_from((1, 3)),
    st.integers(0, 2**32),
)
@example(90, 1, 16, "pad", "bicubic", 3, 0)  # narrower than a pixel: only the padding is left
@example(40, 2, 32, "pad", "bilinear", 1, 0)  # Pillow resizes the columns first
@example(33, 32, 32, "crop", "bicubic", 3, 0)  # crops half a pixel
@example(32, 32, 32, "pad", "bicubic", 3, 0)  # already fits
def test_the_bits_match_pillow(
    height: int, width: int, size: int, fit: str, interpolation: str, channels: int, seed: int
) -> None:
    how = Decoding(channels, size, fit, interpolation=interpolation)
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    image = np.where(image > 127, 255, 0).astype(np.uint8) if seed % 2 else image  # values beyond the range are clipped
    want = by_pillow(image, how)
    assert (fitted(image, how) == want).all()
    by_torch = Fit(how)(torch.from_numpy(image.transpose(2, 0, 1)[None].copy()))[0].numpy()
    assert (by_torch == want).all()


@pytest.mark.parametrize("shape", [(450, 600), (600, 450), (1000, 20)])
def test_large_photographs_match_pillow(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for fit in ("pad", "crop"):
        how = Decoding(3, 96, fit, interpolation="bicubic")
        assert (fitted(image, how) == by_pillow(image, how)).all()
