"""How fast images are augmented in batches, beside torchvision's transforms image by image.

    python tools/bench_data.py [--images 60000] [--batch 128] [--device cpu]

Random bytes of CIFAR's shape are cropped (padding 4), flipped and normalized. torchvision does a
twentieth of them. Where Fashion-MNIST is here, its loading is timed too. Seconds are CPU seconds
of the process, which has one thread; on another device they are seconds of the clock.
"""

import argparse
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torchvision.transforms import v2

from n2nfx import catalogue
from n2nfx.training.data import Data, load
from n2nfx.training.images import Images

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def seconds(job: Callable[[], object], device: str = "cpu") -> float:
    """The shortest of three runs."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    times = []
    for _ in range(3):
        start = clock()
        job()
        if device != "cpu":
            torch.accelerator.synchronize()
        times.append(clock() - start)
    return min(times)


def run(data: Data, batch: int) -> None:
    for _ in data.epoch(0, batch):
        pass


def image_by_image(images: torch.Tensor) -> None:
    look = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(MEAN), list(STD)),
        ]
    )
    for image in images:
        look(image)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    pixels = torch.randint(0, 256, (asked.images, 3, 32, 32), dtype=torch.uint8)
    images = Images(pixels, torch.arange(asked.images) % 10).to(asked.device)
    data = Data("bench", images, images, tuple("abcdefghij"), MEAN, STD)
    few = pixels[: asked.images // 20]
    rows = [
        ("an epoch of ours", asked.images, seconds(lambda: run(data, asked.batch), asked.device)),
        ("torchvision, image by image", len(few), seconds(lambda: image_by_image(few))),
        ("mean and deviation", asked.images, seconds(images.moments)),
    ]
    if catalogue.find(catalogue.entry("fashion-mnist"), catalogue.data_root()).state == "whole":
        rows.append(("load fashion-mnist", 70_000, seconds(lambda: load("fashion-mnist"))))
    table = Table("what", "images", "seconds", "images / s", box=None)
    for what, count, took in rows:
        table.add_row(what, f"{count:,}", f"{took:.2f}", f"{count / took:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
