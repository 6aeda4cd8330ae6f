"""Flips, shifts, crops and affine maps against a slow reference for single images: numpy, torchvision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from augmenting import pictures, seeded_draws, seeded_generator
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms.v2 import functional as tv

from cnnlab.data import geometry
from cnnlab.data.augment import Augmentation
from cnnlab.data.geometry import alternating_flip, random_affine, random_resized_crop, random_shift

# Flip


def test_successive_epochs_alternate_the_flip_in_any_batch() -> None:
    x = pictures(200, 3, 5, 6)
    index = torch.arange(1000, 1200)
    epochs = [alternating_flip(x, index, epoch, 7, 1200) for epoch in range(4)]
    assert torch.equal(epochs[1], epochs[0].flip(3))
    assert torch.equal(epochs[2], epochs[0])
    assert torch.equal(epochs[3], epochs[1])
    order = torch.randperm(200, generator=seeded_generator())[:31]
    assert torch.equal(alternating_flip(x[order], index[order], 2, 7, 1200), epochs[2][order])
    assert not torch.equal(alternating_flip(x, index, 0, 8, 1200), epochs[0])
    assert torch.equal(alternating_flip(x, index, 2, 7, 5000), epochs[2])  # whatever the total number of images


def test_the_hash_matches_python_and_its_bits_are_fair() -> None:
    def python_hash(number: int, seed: int) -> int:
        state = number
        for word in (0, seed % 2**32, seed // 2**32 % 2**32):
            state = (state ^ word) % 2**32
            for factor in (0x7FEB352D, 0x21F0AAAD):
                state = (state ^ state // 2**16) * factor % 2**32
                state ^= state // 2**15
        return state

    numbers = [0, 1, 2, 59_999, 2**31, 2**32 - 1]
    for seed in (0, 1, 2**31 + 5, 2**63 - 1):
        assert geometry._hashed(torch.tensor(numbers), seed).tolist() == [python_hash(i, seed) for i in numbers]
    # The bit in use, for 20,000 images and 20 seeds: fair, and independent of that of the next image and the next seed.
    bits = torch.stack([geometry._hashed(torch.arange(20_000), seed) % 2 for seed in range(20)]).double()
    assert (bits.mean(1) - 0.5).abs().max() < 0.02  # 5 sigma
    assert ((bits[:, 1:] == bits[:, :-1]).double().mean(1) - 0.5).abs().max() < 0.02
    assert ((bits[1:] == bits[:-1]).double().mean(1) - 0.5).abs().max() < 0.02


# Shift


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(2, 9), st.integers(2, 9), st.data(), st.booleans())
def test_shift_matches_a_window_of_numpys_padding(
    b: int, c: int, h: int, w: int, data: st.DataObject, reflect: bool
) -> None:
    pixels = data.draw(st.integers(0, min(h, w) - 1 if reflect else 12))
    x = torch.rand(b, c, h, w, generator=seeded_generator())
    y = random_shift(x, pixels, seeded_draws(5), "reflect" if reflect else "zeros")
    # The same draws: a change would change the curve of every run.
    offsets = torch.randint(0, 2 * pixels + 1, (2, b, 1), generator=seeded_generator(5))[:, :, 0].T.tolist()
    for image, shifted, (row, column) in zip(x, y, offsets, strict=True):
        around = ((0, 0), (pixels, pixels), (pixels, pixels))
        padded = np.pad(image.numpy(), around, mode="reflect" if reflect else "constant")
        np.testing.assert_array_equal(shifted.numpy(), padded[:, row : row + h, column : column + w])


def test_shift_refuses_impossible_settings() -> None:
    with pytest.raises(ValueError, match="'reflect'.*8x5"):
        random_shift(torch.zeros(2, 1, 8, 5), 5, seeded_draws(), "reflect")
    with pytest.raises(ValueError, match="'wrap'"):
        random_shift(torch.zeros(2, 1, 8, 5), 1, seeded_draws(), "wrap")


# Crop


@pytest.mark.parametrize(("c", "h", "w"), [(3, 16, 16), (1, 9, 14)])
def test_a_crop_of_whole_pixels_matches_torchvisions_resized_crop(c: int, h: int, w: int) -> None:
    x = pictures(40, c, h, w)
    boxes = []
    for i in range(40):
        rng = np.random.default_rng(i)
        height, width = int(rng.integers(1, h + 1)), int(rng.integers(1, w + 1))
        boxes.append((int(rng.integers(0, h - height + 1)), int(rng.integers(0, w - width + 1)), height, width))
    y = geometry._cropped(x, *torch.tensor(boxes, dtype=torch.float32).T)
    for image, cropped, box in zip(x, y, boxes, strict=True):
        expected = tv.resized_crop(image, *box, size=[h, w], antialias=True)
        torch.testing.assert_close(cropped, expected, rtol=0, atol=5e-6)


def test_a_crop_between_pixels_is_interpolated_within_its_box() -> None:
    x = pictures(20, 3, 7, 10)
    boxes = geometry._draw_boxes(x, (0.1, 1.0), (0.4, 2.5), seeded_draws(1))
    y = geometry._cropped(x, *boxes)
    for image, cropped, (top, left, height, width) in zip(
        x.double().numpy(), y.numpy(), torch.stack(boxes, 1).double().tolist(), strict=True
    ):
        for row in range(7):
            for column in range(10):
                v = min(max(top + (row + 0.5) * height / 7, top + 0.5), top + height - 0.5) - 0.5
                u = min(max(left + (column + 0.5) * width / 10, left + 0.5), left + width - 0.5) - 0.5
                i, j = min(int(v), 5), min(int(u), 8)
                upper = image[:, i, j] * (1 - (u - j)) + image[:, i, j + 1] * (u - j)
                lower = image[:, i + 1, j] * (1 - (u - j)) + image[:, i + 1, j + 1] * (u - j)
                expected = upper * (1 - (v - i)) + lower * (v - i)
                np.testing.assert_allclose(cropped[:, row, column], expected, rtol=0, atol=2e-5)


def test_boxes_have_the_requested_areas_and_aspects_and_any_position() -> None:
    x = torch.empty(20_000, 1, 40, 50)
    top, left, height, width = geometry._draw_boxes(x, (0.1, 0.4), (0.5, 2.0), seeded_draws())
    for value, low, high in (
        (height * width / 2000, 0.1, 0.4),
        ((width / height).log(), -math.log(2), math.log(2)),
        (top / (40 - height), 0, 1),
        (left / (50 - width), 0, 1),
    ):
        assert stats.kstest(value.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-4
    top, left, height, width = geometry._draw_boxes(x, (0.5, 1.0), (0.1, 10.0), seeded_draws())
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height).max() <= 40 + 1e-4
    assert (left + width).max() <= 50 + 1e-4


def test_a_crop_of_white_does_not_exceed_white() -> None:
    y = random_resized_crop(torch.ones(500, 1, 31, 33), (0.1, 1.0), (0.5, 2.0), seeded_draws())
    assert y.max() <= 1  # unclamped, rounding makes some 1 + 1e-7


# Affine


@pytest.mark.parametrize(("c", "h", "w"), [(3, 16, 16), (1, 28, 28), (2, 9, 14)])
def test_affine_matches_torchvision(c: int, h: int, w: int) -> None:
    x, generator = pictures(40, c, h, w), seeded_generator(3)
    angle = torch.rand(40, generator=generator) * 360 - 180
    scale = torch.rand(40, generator=generator) * 1.5 + 0.5
    shear = torch.rand(40, generator=generator) * 100 - 50
    angle[:4], scale[:10], shear[4:20] = torch.tensor([0.0, 90.0, 180.0, -90.0]), 1.0, 0.0
    y = geometry._affine(x, angle, scale, shear, 0.0)
    colour = torch.tensor([0.2, 0.4, 0.6])[:c]
    filled = geometry._affine(x, angle, scale, shear, colour)
    for i in range(40):
        values = {"angle": angle[i].item(), "scale": scale[i].item(), "shear": [shear[i].item(), 0.0]}
        values |= {"translate": [0, 0], "interpolation": tv.InterpolationMode.BILINEAR}
        expected = tv.affine(x[i], **values)
        torch.testing.assert_close(y[i], expected, rtol=0, atol=1e-5)
        inside = tv.affine(torch.ones_like(x[i, :1]), **values)  # blend at the edge, where torchvision would fill twice
        torch.testing.assert_close(filled[i], expected + (1 - inside) * colour[:, None, None], rtol=0, atol=2e-5)


@pytest.mark.parametrize("side", [1, 5, 16, 28, 31])
@pytest.mark.parametrize("fill", [None, 0.5])
def test_rotations_by_right_angles_copy_pixels(side: int, fill: float | None) -> None:
    x, one, zero = pictures(5, 3, side, side), torch.ones(5), torch.zeros(5)
    y = geometry._affine(x, torch.tensor([0.0, 90.0, -90.0, 180.0, 270.0]), one, zero, fill)
    for image, turned, times in zip(x, y, (0, -1, 1, 2, -3), strict=True):
        assert torch.equal(turned, image.rot90(times, (1, 2)))
        assert times != 1 or torch.equal(turned, tv.rotate(image, 90))


def test_pixels_outside_the_image_are_mirrored() -> None:
    x = pictures(12, 3, 12, 17)
    angle, scale, shear = torch.linspace(-40, 40, 12), torch.linspace(0.5, 1.1, 12), torch.linspace(-20, 20, 12)
    y = geometry._affine(x, angle, scale, shear, None)
    for i in range(12):
        padded = torch.from_numpy(np.pad(x[i].numpy(), ((0, 0), (40, 40), (40, 40)), mode="reflect"))
        expected = tv.affine(
            padded, angle[i].item(), [0, 0], scale[i].item(), [shear[i].item(), 0.0], tv.InterpolationMode.BILINEAR
        )
        torch.testing.assert_close(y[i], expected[:, 40:-40, 40:-40], rtol=0, atol=1e-5)


def test_affine_draws_are_uniform_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    x, found = torch.empty(20_000, 1, 1, 1), []
    monkeypatch.setattr(geometry, "_affine", lambda *args: found.append(args) or x)
    random_affine(x, 30.0, 0.5, 10.0, seeded_draws())
    _, angle, scale, shear, _ = found[0]
    for value, reach in ((angle, 30.0), (scale.log(), math.log(1.5)), (shear, 10.0)):
        assert stats.kstest(value.numpy(), stats.uniform(-reach, 2 * reach).cdf).pvalue > 1e-4


def test_each_setting_works_alone_and_vertical_flip_flips_half() -> None:
    x, index = pictures(200, 3, 9, 9), torch.arange(200)
    mean = x.mean((0, 2, 3))
    for setting in ({"rotation": 20.0}, {"zoom": 0.3}, {"shear": 15.0}):
        y = Augmentation(**setting).apply(x, index, 200, 0, 0, seeded_draws(1), mean)
        assert (y != x).flatten(1).any(1).sum() > 190, setting
        for fill in ("zeros", "reflect"):
            other = Augmentation(**setting, fill=fill).apply(x, index, 200, 0, 0, seeded_draws(1), mean)
            assert not torch.equal(other, y)
    y = Augmentation(vertical_flip=True).apply(x, index, 200, 0, 0, seeded_draws(1), mean)
    flipped = (y == x.flip(2)).flatten(1).all(1)
    assert torch.equal(y[~flipped], x[~flipped])
    assert 70 < flipped.sum() < 130
