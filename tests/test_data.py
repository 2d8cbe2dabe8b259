"""Real images in [0, 1], split once and for all, offline by default."""

import pickle
import sys
from types import ModuleType, SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import functional

from adv_lib import data


def assert_well_formed(loaded, shape):
    for x, y in (loaded[:2], loaded[2:]):
        assert x.shape == (len(y), *shape)
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert x.min() == 0
        assert x.max() == 1
        assert set(y.tolist()) == set(range(10))


def test_the_digits_are_all_1797_images_of_8_by_8_pixels(digits):
    assert_well_formed(digits, (1, 8, 8))
    assert len(digits.x_train) == 1201
    assert len(digits.x_test) == 596


def test_a_third_of_every_class_is_for_testing(digits):
    train, test = (y.bincount() for y in (digits.y_train, digits.y_test))
    assert torch.equal(test, (train + test) // 3)


def test_the_split_loses_no_image_and_repeats_none(digits):
    from sklearn.datasets import load_digits

    def pairs(x, y):
        return sorted(
            (label, *image) for label, image in zip(y.tolist(), x.flatten(1).tolist(), strict=True)
        )

    bunch = load_digits()
    everything = pairs(torch.tensor(bunch.images / 16).float(), torch.tensor(bunch.target))
    loaded = pairs(
        torch.cat([digits.x_train, digits.x_test]), torch.cat([digits.y_train, digits.y_test])
    )
    assert loaded == everything
    assert len({tuple(image) for image in everything}) == len(everything)


def test_the_split_is_the_same_every_time(digits):
    assert all(torch.equal(a, b) for a, b in zip(data.load("digits"), digits, strict=True))


def test_the_digits_need_no_network(monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("opened a connection")

    monkeypatch.setattr("socket.socket.connect", no_network)
    data.load("digits")


def test_a_pair_of_classes_becomes_minus_and_plus_one(digits):
    pair = data.binary(digits, 3, 8)
    for part in ("train", "test"):
        x, y = getattr(pair, f"x_{part}"), getattr(pair, f"y_{part}")
        of = getattr(digits, f"y_{part}")
        images = getattr(digits, f"x_{part}")
        assert torch.equal(x[y == -1], images[of == 3])
        assert torch.equal(x[y == 1], images[of == 8])
        assert y.dtype == torch.int64
        assert set(y.tolist()) == {-1, 1}


def test_swapping_the_classes_swaps_the_signs(digits):
    assert torch.equal(data.binary(digits, 8, 3).y_test, -data.binary(digits, 3, 8).y_test)
    assert torch.equal(data.binary(digits, 8, 3).x_test, data.binary(digits, 3, 8).x_test)


# ---- through torchvision ----


def test_mnist_is_the_official_split(mnist):
    assert_well_formed(mnist, (1, 28, 28))
    assert len(mnist.x_train) == 60_000
    assert len(mnist.x_test) == 10_000
    assert mnist.y_train[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert mnist.x_train.mean().item() == pytest.approx(0.1307, abs=1e-4)


def test_mnist_0_against_1_has_as_many_test_images_as_published(mnist):
    assert len(data.binary(mnist, 0, 1).y_test) == 2115


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST's files: type, axes, sizes, bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 28, 28))


def test_mnist_is_read_from_the_folder_in_the_environment(tmp_path, monkeypatch, images):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, n in (("train", 4), ("t10k", 2)):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(images[:n]))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(n)))
    monkeypatch.setenv("ADV_LIB_DATA", str(tmp_path))
    loaded = data.load("mnist")
    assert torch.equal(loaded.x_train, torch.tensor(images[:4]).unsqueeze(1).float() / 255)
    assert torch.equal(loaded.x_test, torch.tensor(images[:2]).unsqueeze(1).float() / 255)
    assert loaded.y_train.tolist() == [0, 1, 2, 3]


def test_cifar10_comes_channels_first_in_the_unit_range(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    batches = {"data_batch_1": slice(0, 2), "test_batch": slice(2, 3)}
    for name, part in batches.items():
        content = {"data": pixels[part], "labels": [5, 9][: len(pixels[part])]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    # torchvision's own reader, without the checksums of the real files
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", None)
    monkeypatch.setenv("ADV_LIB_DATA", str(tmp_path))
    loaded = data.load("cifar10")
    assert torch.equal(loaded.x_train, torch.tensor(pixels[:2]).reshape(2, 3, 32, 32).float() / 255)
    assert torch.equal(loaded.x_test, torch.tensor(pixels[2:]).reshape(1, 3, 32, 32).float() / 255)
    assert loaded.y_train.tolist() == [5, 9]
    assert loaded.y_test.tolist() == [5]


@pytest.mark.parametrize(("name", "module"), [("mnist", "mnist"), ("cifar10", "cifar")])
def test_offline_the_error_says_which_files_go_where(name, module, tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", offline)
    monkeypatch.setenv("ADV_LIB_DATA", str(tmp_path))
    with pytest.raises(RuntimeError) as caught:
        data.load(name)
    folder = {"mnist": "MNIST/raw", "cifar10": "cifar-10-batches-py"}[name]
    for words in (name, str(tmp_path / folder), "ADV_LIB_DATA", 'load("digits")'):
        assert words in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError | RuntimeError)


def test_without_the_environment_variable_the_folder_is_in_the_user_cache(tmp_path, monkeypatch):
    roots = []

    def fake(root, train, download):
        roots.append(root)
        raise OSError("offline")

    monkeypatch.setattr(datasets, "MNIST", fake)
    monkeypatch.delenv("ADV_LIB_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(RuntimeError):
        data.load("mnist")
    assert roots == [tmp_path / ".cache" / "adv_lib"]


# ---- photographs ----


@pytest.mark.parametrize("name", ["flower", "china"])
def test_a_photograph_of_scikit_learn_comes_as_a_square_in_the_unit_range(name):
    photo = data.photograph(name)
    assert photo.shape == (1, 3, 224, 224)
    assert photo.dtype == torch.float32
    assert 0 <= photo.min() < 0.1
    assert 0.9 < photo.max() <= 1


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (90, 61), (61, 90), (257, 256), (225, 224)])
def test_a_photograph_is_scaled_and_cut_as_torchvision_does_it(tmp_path, size):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    image = functional.center_crop(functional.resize(Image.fromarray(noise), 256), 224)
    expected = functional.to_tensor(image).unsqueeze(0)
    assert torch.equal(data.photograph(str(tmp_path / "noise.png")), expected)


@pytest.mark.parametrize(("mode", "size"), [("RGB", (300, 500)), ("L", (90, 60)), ("RGBA", (256, 256))])
def test_any_image_file_becomes_a_photograph(tmp_path, mode, size):
    file = tmp_path / "own.png"
    Image.new(mode, size, "white").save(file)
    torch.testing.assert_close(data.photograph(str(file)), torch.ones(1, 3, 224, 224))


def shown(image, tmp_path, **options):
    """What becomes of an image that is saved as a PNG."""
    image.save(tmp_path / "own.png", **options)
    return data.photograph(str(tmp_path / "own.png"))


TURNS = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
def test_a_photograph_stands_upright_as_the_camera_was_held(tmp_path, orientation):
    noise = np.random.default_rng(0).integers(0, 256, (256, 300, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation  # the tag of TIFF for it
    upright = Image.fromarray(np.ascontiguousarray(TURNS[orientation](noise)))
    expected = shown(upright, tmp_path)
    assert torch.equal(shown(Image.fromarray(noise), tmp_path, exif=exif), expected)


@pytest.mark.parametrize("file", ["own.png", "own.tif"])
def test_16_bits_become_8(tmp_path, file):
    grey = np.random.default_rng(0).integers(0, 256, (256, 256))
    expected = shown(Image.fromarray(grey.astype(np.uint8)), tmp_path)
    Image.fromarray((257 * grey).astype(np.uint16)).save(tmp_path / file)
    assert torch.equal(data.photograph(str(tmp_path / file)), expected)


def test_what_is_clear_lies_on_white(tmp_path):
    """Black at half, from 0 to 1: 1 − alpha; the same with a palette and with one grey that is clear."""
    alpha = np.linspace(0, 255, 256).astype(np.uint8)
    grey = Image.fromarray(np.tile(255 - alpha, (256, 1)))
    black = Image.new("L", grey.size)
    clear = Image.merge("LA", (black, Image.fromarray(np.tile(alpha, (256, 1)))))
    torch.testing.assert_close(shown(clear, tmp_path), shown(grey, tmp_path), rtol=0, atol=1 / 254)
    assert torch.equal(shown(clear.convert("RGBA"), tmp_path), shown(clear, tmp_path))
    for mode in ("L", "P"):
        assert shown(Image.new(mode, (256, 256)), tmp_path, transparency=0).min() == 1
        assert shown(Image.new(mode, (256, 256)), tmp_path).max() == 0


def test_a_photograph_is_cut_from_the_middle_after_its_shorter_side_is_scaled(tmp_path):
    """A wide image with a black left and right quarter: the middle square is all white."""
    pixels = np.full((100, 400, 3), 255, np.uint8)
    pixels[:, :100] = pixels[:, 300:] = 0
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert data.photograph(str(tmp_path / "wide.png")).min() == 1


@pytest.mark.parametrize("content", [None, b"no image"])
def test_what_is_no_image_is_an_error_that_says_what_is_expected(tmp_path, content):
    file = tmp_path / "own.jpg"
    if content:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r'expected "flower", "china", an image file .*own\.jpg'):
        data.photograph(str(file))


def test_upload_works_in_colab_and_says_elsewhere_that_it_does_not(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="this is not Colab"):
        data.photograph("upload")
    file = tmp_path / "own.png"
    Image.new("RGB", (300, 300), "black").save(file)
    files = SimpleNamespace(upload=lambda: {"own.png": file.read_bytes()})
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(files=files))
    assert data.photograph("upload").max() == 0
    files.upload = dict  # nothing chosen
    with pytest.raises(ValueError, match="expected"):
        data.photograph("upload")
