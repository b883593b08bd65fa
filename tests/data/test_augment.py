"""Batch augmentation against a loop over images, and against torchvision's own normalisation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional

from pipeline.data.augment import Augmentation, augment, normalize
from pipeline.seeding import keyed_generator

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PLAIN_MEAN, PLAIN_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(1, 256, (64, 12, 10, 3), dtype=torch.uint8)  # no black pixel, so that padding is seen


def plain(images: Tensor, how: Augmentation, step: int = 0) -> Tensor:
    """Augmented, but scaled to 0..255 and N, H, W, C again."""
    values = augment(images, how, PLAIN_MEAN, PLAIN_STD, keyed_generator(1, "augment", step))
    return (values * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def windows_of(image: Tensor, padding: int, height: int, width: int) -> list[Tensor]:
    """All windows of a padded image, row by row."""
    padded = torch.nn.functional.pad(image, (0, 0, padding, padding, padding, padding))
    rows, columns = padded.shape[0] - height + 1, padded.shape[1] - width + 1
    return [padded[y : y + height, x : x + width] for y in range(rows) for x in range(columns)]


def places(images: Tensor, cropped: Tensor, padding: int) -> list[list[int]]:
    """For each image the numbers of the windows that equal its crop."""
    height, width = cropped.shape[1:3]
    return [
        [i for i, window in enumerate(windows_of(image, padding, height, width)) if torch.equal(window, crop)]
        for image, crop in zip(images, cropped, strict=True)
    ]


def test_every_crop_is_one_window_of_its_own_padded_image(images: Tensor) -> None:
    found = places(images, plain(images, Augmentation(crop_padding=2)), 2)
    assert all(len(windows) == 1 for windows in found)


def test_crops_reach_every_place_about_equally() -> None:
    images = torch.randint(1, 256, (1, 6, 6, 1), dtype=torch.uint8).expand(4500, 6, 6, 1).contiguous()
    values = augment(images, Augmentation(crop_padding=1), (0.0,), (1.0,), keyed_generator(1))
    crops, counts = values.unique(dim=0, return_counts=True)
    assert len(crops) == 9  # 3 rows times 3 columns
    assert counts.min() > 400 and counts.max() < 600  # 500 expected, deviation 21


def test_crop_to_cuts_smaller_windows_without_padding(images: Tensor) -> None:
    cropped = plain(images, Augmentation(crop_to=8))
    assert cropped.shape == (64, 8, 8, 3)
    assert all(len(windows) == 1 for windows in places(images, cropped, 0))


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_rest(images: Tensor) -> None:
    flipped = plain(images, Augmentation(flip=True))
    kept = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(2)).flatten(1).all(1)
    assert bool((kept ^ mirrored).all())
    assert 16 < int(mirrored.sum()) < 48


def test_flip_and_crop_together_give_windows_of_the_image_or_of_its_mirror_image(images: Tensor) -> None:
    both = plain(images, Augmentation(crop_padding=2, flip=True))
    straight, mirrored = places(images, both, 2), places(images.flip(2), both, 2)
    assert all(len(a) + len(b) == 1 for a, b in zip(straight, mirrored, strict=True))
    assert any(straight) and any(mirrored)


def test_flip_does_not_touch_the_stored_images(images: Tensor) -> None:
    before = images.clone()
    augment(images, Augmentation(2, True, 4), MEAN, STD, keyed_generator(1))
    assert torch.equal(images, before)


@pytest.mark.parametrize("side", [1, 2, 3, 6, 8, 20])
def test_cutout_is_one_square_clipped_at_the_border(images: Tensor, side: int) -> None:
    values = augment(images, Augmentation(cutout=side), PLAIN_MEAN, PLAIN_STD, keyed_generator(1))
    for image in values:
        hole = (image == 0).all(0)
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        top, bottom, left, right = int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])
        assert bool(hole[top : bottom + 1, left : right + 1].all()), "one solid rectangle"
        height, width = bottom - top + 1, right - left + 1
        assert int(hole.sum()) == height * width
        assert height == side or top == 0 or bottom == 11
        assert width == side or left == 0 or right == 9
        # The centre lies inside, so at least half of the square does.
        assert min(side - side // 2, 12) <= height <= side
        assert min(side - side // 2, 10) <= width <= side


def test_cutout_fills_the_mean_and_leaves_everything_else(images: Tensor) -> None:
    without = augment(images, Augmentation(2, True), MEAN, STD, keyed_generator(1))
    with_hole = augment(images, Augmentation(2, True, 4), MEAN, STD, keyed_generator(1))
    changed = with_hole != without
    assert bool((with_hole[changed] == 0).all())
    assert 0 < int(changed.sum()) <= 64 * 3 * 4 * 4


def test_padding_is_black_before_normalisation() -> None:
    white = torch.full((200, 4, 4, 3), 255, dtype=torch.uint8)
    values = augment(white, Augmentation(crop_padding=4), MEAN, STD, keyed_generator(1))
    for channel in range(3):
        found = values[:, channel].unique()
        expected = torch.tensor([(v - MEAN[channel]) / STD[channel] for v in (0.0, 1.0)])
        torch.testing.assert_close(found, expected)


def test_normalisation_equals_torchvision_to_the_bit(images: Tensor) -> None:
    expected = torch.stack(
        [functional.normalize(functional.to_tensor(image.numpy()), list(MEAN), list(STD)) for image in images]
    )
    assert torch.equal(normalize(images, MEAN, STD), expected)
    assert torch.equal(augment(images, Augmentation(), MEAN, STD, keyed_generator(1)), expected)


def test_normalize_cuts_the_centre(images: Tensor) -> None:
    assert torch.equal(normalize(images, MEAN, STD, 6), normalize(images, MEAN, STD)[:, :, 3:9, 2:8])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("how", [Augmentation(), Augmentation(crop_padding=1, flip=True, cutout=2)])
def test_batches_are_float32_in_channels_last(how: Augmentation, channels: int) -> None:
    images = torch.randint(0, 256, (5, 8, 8, channels), dtype=torch.uint8)
    mean, std = MEAN[:channels], STD[:channels]
    for values in (augment(images, how, mean, std, keyed_generator(1)), normalize(images, mean, std)):
        assert values.dtype is torch.float32 and values.shape == (5, channels, 8, 8)
        assert values.stride() == (64 * channels, 1, 8 * channels, channels)


def test_equal_keys_give_equal_batches_and_others_differ(images: Tensor) -> None:
    how = Augmentation(2, True, 4)
    assert torch.equal(plain(images, how, step=3), plain(images, how, step=3))
    assert not torch.equal(plain(images, how, step=3), plain(images, how, step=4))


def test_augmentation_draws_nothing_from_the_default_generator(images: Tensor) -> None:
    before = torch.default_generator.get_state()
    augment(images, Augmentation(2, True, 4), MEAN, STD, keyed_generator(1))
    assert torch.equal(torch.default_generator.get_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_bits_of_the_cpu(images: Tensor) -> None:
    how = Augmentation(2, True, 4)
    on_cpu = augment(images, how, MEAN, STD, keyed_generator(1))
    on_gpu = augment(images.cuda(), how, MEAN, STD, keyed_generator(1))
    assert on_gpu.stride() == on_cpu.stride()
    assert torch.equal(on_gpu.cpu(), on_cpu)
