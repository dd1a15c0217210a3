"""Batched augmentation against torchvision's functions, one sample at a time, exactly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as F
from torchvision.transforms import v2

from sparsebench.data import EvalLoader, Recipe, TensorImages, TrainLoader
from sparsebench.data.augment import crop, draw_epoch, mirror
from sparsebench.data.lazy import LazyImages
from sparsebench.data.rows import FileRows
from sparsebench.data.seeding import generator, number

CIFAR = Recipe(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), pad=4, flip=True)


def random_images(samples, channels=3, size=32):
    stream = torch.Generator().manual_seed(5)
    shape = (samples, channels, size, size)
    return torch.randint(0, 256, shape, generator=stream, dtype=torch.uint8)


def by_hand(image, top, left, flip, recipe):
    """Pad, crop, mirror, to float, normalise: one PIL image with torchvision."""
    picture = F.pad(F.to_pil_image(image), [recipe.pad] * 4)
    picture = F.crop(picture, int(top), int(left), *image.shape[-2:])
    picture = F.hflip(picture) if flip else picture
    return F.normalize(F.to_tensor(picture), recipe.mean, recipe.std)


@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_a_training_batch_is_torchvisions(pad, flip):
    recipe = Recipe(mean=CIFAR.mean, std=CIFAR.std, pad=pad, flip=flip)
    images = random_images(40)
    data = TensorImages.of(images, torch.arange(40), recipe)
    draw = data.draw(seed=1, epoch=2)
    index = torch.tensor([7, 0, 39, 7, 12])
    x, y = data.batch(index, draw)
    assert y.tolist() == index.tolist()
    assert x.is_contiguous()
    for sample, got in zip(index.tolist(), x, strict=True):
        chosen = [part[sample] for part in draw] if draw else (0, 0, False)
        assert torch.equal(got, by_hand(images[sample], *chosen, recipe))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 3), st.integers(2, 7), st.integers(0, 10**6))
def test_crop_and_mirror_for_any_size(batch, pad, size, seed):
    stream = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (batch, 2, size, size + 1), generator=stream).to(torch.uint8)
    top, left = torch.randint(0, 2 * pad + 1, (2, batch), generator=stream)
    flip = torch.rand(batch, generator=stream) < 0.5
    got = mirror(crop(images, top, left, pad), flip)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    for i in range(batch):
        rows = padded[i, :, top[i] : top[i] + size, left[i] : left[i] + size + 1]
        assert np.array_equal(got[i].numpy(), rows[..., ::-1] if flip[i] else rows)


def test_draws_cover_all_offsets_and_flip_half():
    draw = draw_epoch(CIFAR, 20_000, seed=0, epoch=0)
    for offsets in (draw.top, draw.left):
        counts = torch.bincount(offsets)
        assert len(counts) == 9
        assert (counts - 20_000 / 9).abs().max() < 5 * (20_000 / 9) ** 0.5
    assert abs(draw.flip.sum() - 10_000) < 5 * 5000**0.5


def test_draws_depend_on_seed_and_epoch_only():
    first = draw_epoch(CIFAR, 100, seed=1, epoch=2)
    torch.manual_seed(77)
    again = draw_epoch(CIFAR, 100, seed=1, epoch=2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for seed, epoch in ((1, 3), (2, 2), (2, 1), (12, 0)):
        other = draw_epoch(CIFAR, 100, seed, epoch)
        assert not torch.equal(first.top, other.top)
        assert not torch.equal(first.flip, other.flip)


def test_streams_of_different_names_differ():
    assert number("order", 1, 23) != number("order", 12, 3)
    a, b = generator("order", 0, 0), generator("augment", 0, 0)
    assert torch.rand(4, generator=a).tolist() != torch.rand(4, generator=b).tolist()


def test_nothing_random_without_a_draw_or_recipe():
    images = random_images(6)
    data = TensorImages.of(images, torch.arange(6), CIFAR)
    x, _ = next(iter(EvalLoader(data, 6)))
    for got, image in zip(x, images, strict=True):
        assert torch.equal(got, by_hand(image, 4, 4, False, CIFAR))
    plain = TensorImages.of(images, torch.arange(6), CIFAR.without_augmentation())
    assert plain.draw(0, 0) is None


def test_scale_and_signals():
    digits = TensorImages.of(
        torch.arange(17, dtype=torch.uint8).view(17, 1, 1, 1), torch.arange(17), Recipe(scale=16.0)
    )
    x, _ = digits.batch(torch.tensor([0, 8, 16]))
    assert x.flatten().tolist() == [0.0, 0.5, 1.0]
    signals = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    x, _ = TensorImages.of(signals, torch.arange(5)).batch(torch.tensor([3, 1]))
    assert torch.equal(x, signals[[3, 1]])


def test_a_batch_is_no_window_into_the_stored_data():
    signals = torch.ones(4, 3)
    data = TensorImages.of(signals, torch.arange(4))
    for x, _ in EvalLoader(data, 4):
        x.zero_()
    assert torch.equal(signals, torch.ones(4, 3))


def test_select_is_a_view_with_its_own_labels():
    images = random_images(10)
    data = TensorImages.of(images, torch.arange(10) * 10, CIFAR)
    part = data.select(torch.tensor([8, 3, 5])).select(torch.tensor([2, 0]))
    assert part.storage is images
    assert part.labels.tolist() == [50, 80]
    assert torch.equal(part.images, images[[5, 8]])
    assert len(part) == 2


@pytest.fixture
def photos(tmp_path):
    """Twelve pictures of different sizes on disk."""
    stream = np.random.default_rng(0)
    files = []
    for i in range(12):
        pixels = stream.integers(0, 256, (40 + i, 50 - i, 3), dtype=np.uint8)
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(files[-1])
    return FileRows(str(tmp_path), files, [i % 3 for i in range(12)], ("a", "b", "c"))


def lazy(photos, workers=0, augmented=True):
    recipe = Recipe(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), flip=True)
    labels = torch.tensor(photos.labels())
    rows = torch.arange(12)
    return LazyImages(photos, labels, rows, (3, 28, 28), recipe, augmented, workers)


def test_lazy_training_crop_is_torchvisions(photos):
    data = lazy(photos)
    steps = [v2.RandomResizedCrop([28, 28]), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    [(x, y)] = data.batches([torch.tensor([4, 1])], data.draw(seed=3, epoch=5))
    assert y.tolist() == [1, 1]
    for got, index in zip(x, (4, 1), strict=True):
        torch.manual_seed(number("augment", 3, 5, index))
        pixels = v2.Compose(steps)(photos.image(index))
        assert torch.equal(
            got, F.normalize(pixels.float().div(255), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
        )


def test_lazy_evaluation_is_resize_and_centre_crop(photos):
    [(x, _)] = lazy(photos).batches([torch.arange(12)])
    for got, picture in zip(x, (photos.image(i) for i in range(12)), strict=True):
        cut = F.center_crop(F.resize(picture, 32), 28)
        want = F.normalize(F.to_tensor(cut), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
        assert torch.equal(got, want)


def test_lazy_batches_do_not_depend_on_workers_order_or_the_global_generator(photos):
    loaders = [TrainLoader(lazy(photos, workers), 4, seed=1) for workers in (0, 2)]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = list(loaders[0].batches(epoch=1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = list(loaders[1].batches(epoch=1))
    resumed = list(loaders[1].batches(epoch=1, start=1))
    assert len(first) == len(second) == 3
    for (a, b), (c, d) in zip(first + first[1:], second + resumed, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    other = next(iter(loaders[0].batches(epoch=2)))
    assert not torch.equal(first[0][0], other[0])


def test_lazy_without_augmentation_is_its_evaluation(photos):
    data = lazy(photos, augmented=False)
    assert data.draw(0, 0) is None
    part = data.select(torch.tensor([5, 2]))
    assert (len(part), part.labels.tolist()) == (2, [2, 2])
    [(a, _)] = part.batches([torch.tensor([1])], part.draw(0, 0))
    [(b, _)] = lazy(photos).batches([torch.tensor([2])])
    assert torch.equal(a, b)
