"""Each batched augmentation against a slow reference for single images: numpy, PIL, scipy, torchvision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from augmenting import pictures, seeded_draws, seeded_generator
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from cnnlab.data import augment
from cnnlab.data.augment import Augmentation, color_jitter, cutmix, cutout, mixup, rand_augment
from cnnlab.data.draws import Draws
from cnnlab.data.geometry import alternating_flip, random_affine, random_flip, random_resized_crop, random_shift

ALL: dict[str, Callable[[Tensor, Draws], Tensor]] = {
    "flip": random_flip,
    "vertical flip": lambda x, g: random_flip(x, g, dim=2),
    "affine": lambda x, g: random_affine(x, 90, 0.5, 30, g, torch.full((x.shape[1],), 0.4)),
    "reflected affine": lambda x, g: random_affine(x, 90, 0.5, 30, g, None),
    "alternating": lambda x, g: alternating_flip(
        x, torch.arange(len(x)), 0, int(torch.randint(99, (), generator=g.generator)), len(x)
    ),
    "shift": lambda x, g: random_shift(x, 2, g),
    "reflect": lambda x, g: random_shift(x, min(x.shape[2:]) - 1, g, "reflect"),
    "cutout": lambda x, g: cutout(x, 3, g, torch.full((x.shape[1],), 0.4)),
    "crop": lambda x, g: random_resized_crop(x, (0.1, 1.0), (0.5, 2.0), g),
    "jitter": lambda x, g: color_jitter(x, 0.8, 0.8, 0.8, g),
    "randaugment": lambda x, g: rand_augment(x, 2, 15, g, 0.3),
    "mixup": lambda x, g: mixup(x, torch.arange(len(x)), 0.4, g)[0],
    "cutmix": lambda x, g: cutmix(x, torch.arange(len(x)), 1.0, g)[0],
}


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.sampled_from([1, 3]), st.integers(1, 13), st.integers(1, 13), st.integers(0, 99))
def test_results_repeat_keep_shape_and_range_and_leave_the_input_unchanged(
    name: str, b: int, c: int, h: int, w: int, seed: int
) -> None:
    x = torch.rand(b, c, h, w, generator=seeded_generator(seed))
    x[0] = 1.0  # the end of the range, where rounding errors would show
    before = x.clone()
    first, second = ALL[name](x, seeded_draws(seed)), ALL[name](x, seeded_draws(seed))
    assert first.shape == x.shape
    assert first.dtype == torch.float32
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, second)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", ALL)
def test_images_and_seeds_get_different_draws(name: str) -> None:
    x = pictures(1, 3, 16, 16).expand(64, 3, 16, 16)
    if name in ("mixup", "cutmix"):  # these need different images to mix
        x = x * torch.linspace(0.5, 1, 64).view(-1, 1, 1, 1)
    y, z = ALL[name](x, seeded_draws(1)), ALL[name](x, seeded_draws(2))
    assert not torch.equal(y, z)
    assert len({image.numpy().tobytes() for image in y}) >= (2 if "flip" in name or name == "alternating" else 10)


@pytest.mark.parametrize("name", ALL)
def test_the_memory_layout_does_not_matter(name: str) -> None:
    x = pictures(7, 3, 9, 12)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ALL[name](last, seeded_draws(3)), ALL[name](x, seeded_draws(3)), rtol=0, atol=1e-6)


# Cutout


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9), st.integers(1, 11), st.booleans())
def test_cutout_fills_a_square_that_may_hang_over_the_edge(c: int, h: int, w: int, pixels: int, scalar: bool) -> None:
    x = torch.rand(12, c, h, w, generator=seeded_generator())
    fill = torch.tensor([0.25, 0.5, 0.75][:c])
    rows, columns = augment._draw_pixels(x, seeded_draws(1))
    y = cutout(x, pixels, seeded_draws(1), 0.25 if scalar else fill)
    for i in range(12):
        expected = x[i].clone()
        top, left = int(rows[i]) - pixels // 2, int(columns[i]) - pixels // 2
        for row in range(max(top, 0), min(top + pixels, h)):
            for column in range(max(left, 0), min(left + pixels, w)):
                expected[:, row, column] = 0.25 if scalar else fill
        assert torch.equal(y[i], expected)


def test_the_centre_of_cutout_is_uniform() -> None:
    y = cutout(torch.ones(20_000, 1, 4, 5), 1, seeded_draws())
    assert (y.sum((1, 2, 3)) == 19).all()
    assert stats.chisquare((1 - y).sum((0, 1)).flatten().numpy()).pvalue > 1e-4


# Colours


@pytest.mark.parametrize("c", [1, 3])
def test_jitter_matches_torchvisions_adjustments_in_sequence(c: int) -> None:
    x = pictures(60, c, 8, 9)
    factors, order = augment._draw_colors(x, (0.9, 0.9, 1.5), seeded_draws(4))
    y = augment._recolored(x, factors, order)
    assert torch.equal(y, color_jitter(x, 0.9, 0.9, 1.5, seeded_draws(4)))
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    for i in range(60):
        expected = x[i]
        for kind in order[i].tolist():
            expected = adjust[kind](expected, float(factors[i, kind]))
        torch.testing.assert_close(y[i], expected, rtol=0, atol=2e-6)


def test_jitter_draws_are_uniform_and_every_order_occurs() -> None:
    factors, order = augment._draw_colors(torch.empty(12_000, 3, 1, 1), (0.3, 0.0, 1.5), seeded_draws())
    assert stats.kstest(factors[:, 0].numpy(), stats.uniform(0.7, 0.6).cdf).pvalue > 1e-4
    assert (factors[:, 1] == 1).all()
    assert stats.kstest(factors[:, 2].numpy(), stats.uniform(0.0, 2.5).cdf).pvalue > 1e-4
    _, counts = np.unique(order.numpy(), axis=0, return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-4


def test_jitter_of_zero_leaves_the_image_unchanged() -> None:
    x = pictures(8, 3, 6, 6)
    assert torch.equal(color_jitter(x, 0.0, 0.0, 0.0, seeded_draws()), x)


# RandAugment


def torchvision_operation(image: Tensor, name: str, level: int, sign: int, fill: list[float]) -> Tensor:
    """Apply an operation of torchvision's RandAugment, with its own table. Those that work on levels get uint8."""
    made = v2.RandAugment(fill=fill)
    magnitudes, signed = v2.RandAugment._AUGMENTATION_SPACE[name]
    table = magnitudes(31, *image.shape[1:])
    magnitude = 0.0 if table is None else float(table[level]) * (sign if signed else 1)
    levels = name in ("Posterize", "Equalize")
    given = (image * 255).round().to(torch.uint8) if levels else image
    result = made._apply_image_or_video_transform(
        given, name, magnitude, interpolation=made.interpolation, fill=made._fill
    )
    return result.float() / 255 if levels else result


@pytest.mark.parametrize("name", augment._OPERATIONS)
@pytest.mark.parametrize(("c", "h", "w"), [(3, 16, 16), (1, 15, 18)])
def test_every_operation_matches_torchvision(name: str, c: int, h: int, w: int) -> None:
    assert set(augment._OPERATIONS) == set(v2.RandAugment._AUGMENTATION_SPACE)
    x = pictures(3, c, h, w)
    fill = [0.2, 0.4, 0.6][:c]
    for level in (0, 1, 9, 14, 23, 30):
        for sign in (1, -1):
            y = augment._operated(x, name, level, sign, torch.tensor(fill))
            for image, changed in zip(x, y, strict=True):
                torch.testing.assert_close(
                    changed, torchvision_operation(image, name, level, sign, fill), rtol=0, atol=2e-6
                )


@pytest.mark.parametrize("c", [1, 3])
def test_rand_augment_applies_each_images_own_operations(c: int) -> None:
    x = pictures(90, c, 12, 12)
    kinds = 14 if c == 3 else 13
    codes = torch.randint(2 * kinds, (2, 90), generator=seeded_generator(3)).T.tolist()
    y = rand_augment(x, 2, 11, seeded_draws(3), 0.5)
    unlike = 0
    for image, changed, ops in zip(x, y, codes, strict=True):
        expected = image
        for code in ops:
            name = augment._OPERATIONS[code // 2]
            assert c == 3 or name != "Color"
            expected = torchvision_operation(expected, name, 11, 1 - 2 * (code % 2), [0.5] * c)
        unlike += not torch.allclose(changed, expected, rtol=0, atol=1e-5)
    assert unlike <= 2  # none here; elsewhere a second operation may turn a difference in the last bit into a level


def test_equalize_autocontrast_and_solarize_match_pil() -> None:
    x = pictures(5, 3, 16, 16)
    for name, reference in (
        ("Equalize", ImageOps.equalize),
        ("AutoContrast", ImageOps.autocontrast),
        ("Solarize", lambda image: ImageOps.solarize(image, 179)),  # 0.7 of 255 is 178.5
    ):
        y = augment._operated(x, name, 9, 1, 0.0)
        for image, changed in zip(x, y, strict=True):
            levels = (image * 255).round().byte().permute(1, 2, 0).numpy()
            expected = np.asarray(reference(Image.fromarray(levels)))
            assert np.abs(changed.permute(1, 2, 0).numpy() * 255 - expected).max() < 1.01  # PIL truncates


def test_zero_operations_return_a_copy() -> None:
    x = pictures(3, 3, 5, 5)
    y = rand_augment(x, 0, 9, seeded_draws())
    assert torch.equal(x, y)
    assert x.data_ptr() != y.data_ptr()


# Mixing


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 1.7, 30.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    shares = augment._draw_shares(torch.empty(20_000, 0), alpha, seeded_draws()).double().numpy()
    assert shares.min() >= 0
    assert shares.max() <= 1
    # float32 is too coarse near 1, so compare below; the distribution is symmetric.
    grid = np.linspace(0.001, 0.999, 200)
    found = (shares[:, None] < grid).mean(0)
    assert np.abs(found - stats.beta(alpha, alpha).cdf(grid)).max() < 0.0145  # Kolmogorov, p = 0.0005


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 1.7, 30.0])
def test_the_beta_table_matches_scipy(alpha: float) -> None:
    share = 0.5 * np.linspace(0, 1, 4097) ** (1 / min(alpha, 1.0))
    table = augment._beta_table(alpha, torch.device("cpu")).numpy()
    np.testing.assert_allclose(table, 2 * stats.beta(alpha, alpha).cdf(share), rtol=0, atol=2e-6)


def test_mixup_is_a_convex_blend_of_neighbours() -> None:
    x, labels = pictures(50, 3, 6, 7), torch.arange(50)
    y, same, other, share = mixup(x, labels, 0.5, seeded_draws(2))
    assert same is labels
    assert share.dtype == torch.float32
    assert share.shape == (50,)
    assert other.tolist() == [i + 1 if i % 2 == 0 else i - 1 for i in range(50)]
    assert len(share.unique()) == 50
    for i in range(50):
        s = float(share[i])
        np.testing.assert_allclose(y[i], s * x[i].numpy() + (1 - s) * x[other[i]].numpy(), rtol=0, atol=1e-6)
        assert (y[i] >= torch.minimum(x[i], x[other[i]])).all()
        assert (y[i] <= torch.maximum(x[i], x[other[i]])).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.sampled_from([1, 3]), st.integers(1, 12), st.integers(1, 12), st.integers(0, 999))
def test_the_cutmix_share_is_the_fraction_of_pixels_kept(b: int, c: int, h: int, w: int, seed: int) -> None:
    labels = torch.arange(b)
    x = labels.float().view(b, 1, 1, 1).expand(b, c, h, w) / b  # every pixel tells which image it is from
    y, same, other, share = cutmix(x, labels, 1.0, seeded_draws(seed))
    assert same is labels
    assert other.tolist() == [min(i ^ 1, b - 1) if i ^ 1 < b else max(i - 1, 0) for i in range(b)]
    for i in range(b):
        if int(other[i]) == i:
            assert torch.equal(y[i], x[i])
            continue
        foreign = y[i, 0] == x[other[i], 0]
        assert (foreign | (y[i, 0] == x[i, 0])).all()
        assert (y[i] == y[i, :1]).all()
        assert float(share[i]) == pytest.approx(1 - float(foreign.sum()) / (h * w), abs=1e-6)
        if foreign.any():  # one box
            rows, columns = foreign.any(1), foreign.any(0)
            assert torch.equal(foreign, rows[:, None] & columns[None, :])
            assert all(int(v.nonzero().max() - v.nonzero().min()) + 1 == int(v.sum()) for v in (rows, columns))


def test_cutmix_pastes_from_the_same_place_and_areas_follow_beta() -> None:
    x = pictures(30, 3, 12, 12)
    y, _, other, _ = cutmix(x, torch.arange(30), 1.0, seeded_draws(1))
    assert ((y == x) | (y == x[other])).all()
    # Unless the border clips the box, its sides are floor(side * sqrt(1 - share)); for alpha 1 the share is uniform. A
    # simulation in numpy gives the expected area of the clipped boxes.
    _, _, _, share = cutmix(torch.zeros(20_000, 1, 16, 16), torch.zeros(20_000), 1.0, seeded_draws(2))
    rng = np.random.default_rng(0)
    side = (16 * np.sqrt(rng.random(20_000))).astype(int)
    areas = np.ones(20_000)
    for _ in range(2):
        start = rng.integers(0, 16, 20_000) - side // 2
        areas *= np.clip(start + side, 0, 16) - np.clip(start, 0, 16)
    assert float(share.mean()) == pytest.approx(1 - areas.mean() / 256, abs=0.01)
    assert float(share.std()) == pytest.approx(areas.std() / 256, abs=0.01)


# All together


def test_without_augmentation_the_same_tensors_are_returned() -> None:
    x, labels, off = pictures(4, 3, 6, 6), torch.arange(4), Augmentation()
    generator, host = seeded_generator(), seeded_generator()
    before = generator.get_state()
    assert off.apply(x, labels, 6, 0, 0, Draws(generator), 0.0) is x
    images, same, other, share = off.mix(x, labels, Draws(generator), host)
    assert images is x
    assert same is labels
    assert other is None
    assert share is None
    assert torch.equal(generator.get_state(), before)


def test_the_draws_of_flip_and_shift_have_not_changed() -> None:
    x = pictures(40, 3, 8, 8)
    y = Augmentation(flip=True, shift=2).apply(x, torch.arange(40), 40, 3, 1, seeded_draws(9), 0.0)
    generator = seeded_generator(9)
    mirrored = torch.rand(40, generator=generator) < 0.5
    offsets = torch.randint(0, 5, (2, 40, 1), generator=generator)
    for i in range(40):
        image = x[i].numpy()[:, :, ::-1] if mirrored[i] else x[i].numpy()
        row, column = int(offsets[0, i]), int(offsets[1, i])
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)))
        np.testing.assert_array_equal(y[i].numpy(), padded[:, row : row + 8, column : column + 8])


def test_changes_are_applied_in_the_documented_order() -> None:
    x, index, fill = pictures(30, 3, 12, 12), torch.arange(30), torch.tensor([0.1, 0.2, 0.3])
    on = Augmentation(
        shift=2,
        shift_fill="reflect",
        flip=True,
        alternating_flip=True,
        vertical_flip=True,
        rotation=30.0,
        zoom=0.2,
        shear=10.0,
        crop_scale=0.5,
        crop_ratio=1.5,
        brightness=0.2,
        contrast=0.3,
        saturation=0.4,
        cutout=4,
        randaugment=1,
        magnitude=7,
    )
    g = seeded_draws(6)
    expected = random_resized_crop(x, (0.5, 1.0), (1 / 1.5, 1.5), g)
    expected = alternating_flip(expected, index, 2, 11, 30)
    expected = random_flip(expected, g, dim=2)
    expected = random_affine(expected, 30, 0.2, 10, g, fill)
    expected = random_shift(expected, 2, g, "reflect")
    expected = color_jitter(expected, 0.2, 0.3, 0.4, g)
    expected = rand_augment(expected, 1, 7, g, fill)
    expected = cutout(expected, 4, g, fill)
    assert torch.equal(on.apply(x, index, 30, 2, 11, seeded_draws(6), fill), expected)


def test_each_batch_gets_either_mixup_or_cutmix() -> None:
    x, labels = pictures(6, 1, 8, 8), torch.arange(6)
    one = {
        "mixup": Augmentation(mixup=0.3).mix(x, labels, seeded_draws(1), seeded_generator())[0],
        "cutmix": Augmentation(cutmix=0.7).mix(x, labels, seeded_draws(1), seeded_generator())[0],
    }
    assert torch.equal(one["mixup"], mixup(x, labels, 0.3, seeded_draws(1))[0])
    assert torch.equal(one["cutmix"], cutmix(x, labels, 0.7, seeded_draws(1))[0])
    host, found = seeded_generator(), []
    for _ in range(400):
        images = Augmentation(mixup=0.3, cutmix=0.7).mix(x, labels, seeded_draws(1), host)[0]
        found += [name for name, result in one.items() if torch.equal(images, result)]
    assert len(found) == 400
    assert 150 < found.count("mixup") < 250


@pytest.mark.parametrize("channels", [2, 5])
def test_rand_augment_of_many_channels_changes_each_as_a_grey_image(channels: int) -> None:
    images = torch.rand(40, channels, 12, 12, generator=torch.Generator().manual_seed(0))
    together = rand_augment(images, 1, 20, seeded_draws(1))
    for c in range(channels):  # neither has the saturation operation, so the draws are the same
        alone = rand_augment(images[:, c : c + 1], 1, 20, seeded_draws(1))
        torch.testing.assert_close(together[:, c : c + 1], alone)
