"""Where the images come from: real handwritten digits and photographs, offline by default.

Images are float32 in [0, 1], shaped (n, channels, height, width); labels are int64.
"""

from __future__ import annotations

import io
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

NAMES = ("digits", "mnist", "cifar10")


class Data(NamedTuple):
    """A training set and a test set.

    x_train, x_test: float32 (n, C, H, W), in [0, 1].
    y_train, y_test: int64 (n,).
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def load(name: str) -> Data:
    """Load "digits", "mnist" or "cifar10".

    "digits" are the 1,797 images of 8×8 pixels that ship with scikit-learn. Of every class each third
    image, in the data's own order, is a test image: 1,201 to train on and 596 to test on. They never
    change and need no download.

    "mnist" and "cifar10" come through torchvision with their official split. They are kept in
    $ADV_LIB_DATA, or in ~/.cache/adv_lib, and downloaded there on first use.

    Raises ValueError for another name, and RuntimeError, which says what to put where, if a download
    is needed and fails.
    """
    if name == "digits":
        return _digits()
    if name in NAMES:
        return _torchvision(name)
    raise ValueError(f"unknown data set {name!r}: expected one of {', '.join(NAMES)}")


def binary(data: Data, a: int, b: int) -> Data:
    """Keep the classes a and b only, with labels −1 for a and +1 for b.

    Raises ValueError if a = b or one of them does not occur.
    """
    present = set(data.y_train.unique().tolist())
    if a == b or not {a, b} <= present:
        raise ValueError(f"expected two different classes out of {sorted(present)}, got {a} and {b}")

    def keep(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        mask = (y == a) | (y == b)
        return x[mask], torch.where(y[mask] == b, 1, -1)

    return Data(*keep(data.x_train, data.y_train), *keep(data.x_test, data.y_test))


def photograph(source: str) -> Tensor:
    """One photograph as a classifier of ImageNet gets it, (1, 3, 224, 224) in [0, 1].

    The picture is turned as its camera says, 16 bits become 8, and what is transparent lies on white.
    The shorter side is scaled to 256 pixels and the middle square of 224 cut out. Nothing is normalised:
    that is the model's part (`models.imagenet`).
    source: "flower" or "china", which ship with scikit-learn; the path of an image; or, in Colab,
            "upload", which asks for one.
    Raises ValueError for anything else.
    """
    import numpy as np
    from PIL import Image

    image = _picture(source)
    width, height = (256 * side // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    pixels = np.array(image.crop((left, top, left + 224, top + 224)))  # (224, 224, 3), 0 to 255
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).float() / 255


def folder() -> Path:
    """Where downloads are kept: $ADV_LIB_DATA, or ~/.cache/adv_lib."""
    return Path(os.environ.get("ADV_LIB_DATA") or Path.home() / ".cache" / "adv_lib")


def _picture(source: str):
    """The source of `photograph` as a PIL image."""
    from PIL import Image, UnidentifiedImageError

    if source in ("flower", "china"):
        return Image.open(_scikit_learn("images", f"{source}.jpg"))
    try:
        return _upright(Image.open(_upload() if source == "upload" else source))
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(
            f'expected "flower", "china", an image file or, in Colab, "upload", got {source!r}: {error}'
        ) from error


def _upright(image):
    """A PIL image of any mode and orientation as an upright one in RGB, on white where it is clear."""
    import numpy as np
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which convert would cut off at 255
        grey = (np.asarray(image).astype(float) / 257).round().clip(0, 255)
        image = Image.fromarray(grey.astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _upload() -> io.BytesIO:
    """The file that a reader in Colab chooses."""
    if "google.colab" not in sys.modules:
        raise OSError("this is not Colab")
    from google.colab import files

    return io.BytesIO(*list(files.upload().values())[:1])


def _scikit_learn(*path: str) -> Path:
    """A file among scikit-learn's data sets. Importing its reader takes longer than a first attack."""
    package = find_spec("sklearn").origin
    return Path(package).parent.joinpath("datasets", *path)


def _digits() -> Data:
    import numpy as np

    table = np.loadtxt(_scikit_learn("data", "digits.csv.gz"), delimiter=",", dtype=np.float32)
    x = torch.from_numpy(table[:, :-1] / 16).reshape(-1, 1, 8, 8)  # from 0, 1, …, 16
    y = torch.from_numpy(table[:, -1]).long()
    turn = torch.nn.functional.one_hot(y).cumsum(0).gather(1, y[:, None]).squeeze(1)  # 1, 2, 3, …
    test = turn % 3 == 0
    return Data(x[~test], y[~test], x[test], y[test])


def _torchvision(name: str) -> Data:
    from torchvision import datasets

    root = folder()
    source = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[name]
    try:
        train, test = (source(root, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        place = {"mnist": "MNIST/raw", "cifar10": "cifar-10-batches-py"}[name]
        raise RuntimeError(
            f"{name} is not in {root} and could not be downloaded: connect to the internet, or put "
            f"torchvision's files in {root / place} (another root: set ADV_LIB_DATA), "
            'or use load("digits"), which needs neither'
        ) from error
    return Data(*_tensors(train), *_tensors(test))


def _tensors(dataset) -> tuple[Tensor, Tensor]:
    """A torchvision set as images (n, C, H, W) in [0, 1] and labels (n,)."""
    x = torch.as_tensor(dataset.data)
    x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
    return x.float() / 255, torch.as_tensor(dataset.targets, dtype=torch.int64)
