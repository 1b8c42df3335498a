"""Images a second of one core from files to batches: ours against Pillow and torchvision, and on shrunk copies.

    python benchmarks/loader.py [FOLDER]        a folder of photographs; without one, 200 are made up

Every variant reads every image once: file, decode, random crop to 224, flip, batches of 50, in one process and one
thread (workers=0), files in the system's cache. Seconds are the processor's, spent by this process: what waits for a
core does not count. The paper's way normalises while it loads, ours on the device, so the strict comparison is with
those of ours that "normalise" too: their batches go through the encoder's own first step, on the same core.
Repetitions are interleaved: a busy moment of the machine hits all variants alike.

What was tried, with numbers: docs/results/loader.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms as vision
from torchvision.datasets import ImageFolder

from compress_ssl import jpeg, shrink
from compress_ssl.datasets import open_splits
from compress_ssl.encoder import Encoder
from compress_ssl.loader import TrainLoader
from compress_ssl.picture import SUFFIXES
from compress_ssl.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, RandomView, TrainView

SIZE, BATCH = 224, 50


class Nothing(nn.Module):
    """The backbone that gives back what it gets: what is left of an encoder is its first step."""

    width = 3
    preprocessing = Preprocessing(size=SIZE)

    def forward(self, images: Tensor) -> Tensor:
        return images


def papers(folder: Path) -> Callable[[], int]:
    """As the paper's code loads: ImageFolder and torchvision's transforms on Pillow images."""
    view = vision.Compose(
        [
            vision.RandomResizedCrop(SIZE),
            vision.RandomHorizontalFlip(),
            vision.ToTensor(),
            vision.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    loader = DataLoader(ImageFolder(str(folder), view), batch_size=BATCH, shuffle=True, num_workers=0)
    return lambda: sum(len(images) for images, _ in loader)


def ours(folder: Path, *, normalise: bool) -> Callable[[], int]:
    images = open_splits(str(folder)).train
    loader = TrainLoader(images, RandomView(TrainView(), SIZE), batch_size=BATCH, seed=0, workers=0)
    device, encoder = torch.device("cpu"), Encoder(Nothing(), spec="nothing").eval()
    epochs = iter(range(1_000_000))  # another one each time: other crops, as for the paper's way

    def epoch() -> int:
        first = next(epochs) * loader.steps_per_epoch
        count = 0
        for _, batch in zip(range(loader.steps_per_epoch), loader.batches(first), strict=False):
            batch = batch.to(device)
            count += len(encoder(batch.images) if normalise else batch.images)
        return count

    return epoch


def made_up(folder: Path, *, count: int = 200) -> None:
    """Images with the sizes, the kinds of JPEG and about the bytes of ImageNet's photographs: noise of every scale."""
    random = np.random.default_rng(0)
    for number in range(count):
        height, width = (375, 500) if number % 4 else (500, 375)
        picture = np.zeros((height, width, 3))
        for level in range(9):
            grain = random.normal(0, 30 * 0.86 ** (8 - level), (2 + height >> level or 1, 2 + width >> level or 1, 3))
            scaled = [
                Image.fromarray(grain[..., c].astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
                for c in range(3)
            ]
            picture += np.dstack([0.4 * np.asarray(s) + 0.6 * np.asarray(scaled[0]) for s in scaled])
        pixels = (128 + picture).clip(0, 255).astype(np.uint8)
        path = folder / f"class{number % 10}" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=92, subsampling=2 if number % 5 == 0 else 0)


def files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def processor() -> str:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="photographs in class folders")
    parser.add_argument("--times", type=int, default=7, help="times each variant reads all images, after a first one")
    parser.add_argument("--shrunk", nargs="*", default=["384:95", "384:90", "256:95"], help="short side : quality")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary, "made up")
        if options.folder is None:
            made_up(folder)
        variants = {
            "paper: Pillow, torchvision, normalise": papers(folder),
            "ours": ours(folder, normalise=False),
            "ours, normalise": ours(folder, normalise=True),
        }
        sizes = {"as they are": folder}
        for asked in options.shrunk:
            side, quality = map(int, asked.split(":"))
            told, out = f"shrunk to {side}, quality {quality}", Path(temporary, asked)
            shrink.run(shrink.Config(data=str(folder), out=out, short_side=side, quality=quality, workers=0))
            variants[f"ours, {told}"] = ours(out, normalise=False)
            variants[f"ours, {told}, normalise"] = ours(out, normalise=True)
            sizes[told] = out
        rates: dict[str, list[float]] = {name: [] for name in variants}
        for round_ in range(options.times + 1):
            for name, epoch in variants.items():
                start = time.process_time()
                count = epoch()
                if round_:  # the first one warms up
                    rates[name].append(count / (time.process_time() - start))
        print(f"{processor()}, 1 thread of {os.cpu_count()} cores, torch {torch.__version__}, torchvision "
              f"{torchvision.__version__}, Pillow {PIL.__version__}, "
              f"simplejpeg {getattr(jpeg.simplejpeg, '__version__', 'missing')}")  # fmt: skip
        for name, place in sizes.items():
            bytes_each = [path.stat().st_size for path in files(place)]
            print(f"{len(bytes_each)} photographs {name}: {statistics.mean(bytes_each) / 1000:.0f} kB on average")
        print(f"\n{'':44}{'n':>3}  {'images/core-second: median (min – max)':42}ratio of medians")
        base = statistics.median(rates["paper: Pillow, torchvision, normalise"])
        for name, found in rates.items():
            middle = statistics.median(found)
            spread = f"{middle:8.0f}  ({min(found):.0f} – {max(found):.0f})"
            print(f"{name:44}{len(found):3}  {spread:42}{middle / base:.2f}")


if __name__ == "__main__":
    main()
