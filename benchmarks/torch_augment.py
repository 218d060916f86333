"""torchvision's transforms of uint8 tensors, in a process of its own; for augment.py.

Commands and answers are lines of JSON. Each image goes through the policy by itself, so that it draws numbers of its
own, as in a data set.
"""

import json
import os
import sys
import time
import warnings
from contextlib import redirect_stdout
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torchvision  # pyright: ignore[reportMissingImports]
from torchvision.transforms import v2  # pyright: ignore[reportMissingImports]


def policies(size: int) -> dict[str, Any]:
    """By the names of augmentations.POLICIES; bilinear without smoothing beforehand, as there."""
    crop, flip = v2.RandomResizedCrop(size, antialias=False), v2.RandomHorizontalFlip()
    box = (8 / size) ** 2  # erases inside the image alone: torchvision has no cutout
    one_of_three = [
        v2.RandomGrayscale(p=1.0),
        v2.RandomSolarize(threshold=128, p=1.0),
        v2.GaussianBlur(13, sigma=(0.1, 2.0)),
    ]
    return {
        "CIFAR": v2.Compose(
            [flip, v2.RandomCrop(size, padding=4), v2.RandomErasing(1.0, (box, box), (1.0, 1.0))]
        ),
        "Inception": v2.Compose([crop, flip, v2.ColorJitter(0.4, 0.4, 0.4, 0.1)]),
        "DeiT III": v2.Compose([crop, flip, v2.RandomChoice(one_of_three), v2.ColorJitter(0.3, 0.3, 0.3)]),
    }


class Loader:
    """A policy on a batch of images, one after the other, with so many threads for each operation."""

    def __init__(self, policy: str, size: int, batch_size: int, threads: int) -> None:
        torch.manual_seed(0)
        self._images = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8)
        self._policy, self._threads = policies(size)[policy], threads

    def run(self, steps: int) -> float:
        """Seconds a batch, over so many of them after one that does not count."""
        torch.set_num_threads(self._threads)
        self._batch()
        start = time.perf_counter()
        for _ in range(steps):
            self._batch()
        return (time.perf_counter() - start) / steps

    def _batch(self) -> torch.Tensor:
        return torch.stack([self._policy(image) for image in self._images])


def main() -> None:
    # Whatever else is printed must not come between the answers.
    answers = sys.stdout
    threads = {"torchvision": len(os.sched_getaffinity(0)), "torchvision, 1 thread": 1}
    warnings.simplefilter("ignore")
    loaders: dict[str, Loader] = {}
    for line in sys.stdin:
        command = json.loads(line)
        with redirect_stdout(sys.stderr):
            if "policy" in command:
                loaders = {name: Loader(**command, threads=count) for name, count in threads.items()}
                versions = {m.__name__: m.__version__ for m in (torch, torchvision)}
                answer: Any = {"names": list(loaders), "versions": versions}
            else:
                answer = loaders[command["name"]].run(command["steps"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
