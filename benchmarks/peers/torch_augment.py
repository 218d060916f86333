"""Runs torchvision's transforms of uint8 tensors, in a process of its own; for augment.

Each image goes through the policy by itself, so that it draws numbers of its
own, as in a data set.
"""

import warnings
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torchvision  # pyright: ignore[reportMissingImports]
from torchvision.transforms import v2  # pyright: ignore[reportMissingImports]

from benchmarks.peers.serve import count_cores, serve, time_calls


def make_policies(size: int) -> dict[str, Any]:
    """Makes policies by the names of `augmentations.POLICIES`; bilinear without smoothing beforehand, as there."""
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
        self._policy, self._threads = make_policies(size)[policy], threads

    def run(self, steps: int) -> float:
        """Times so many batches, in seconds each, after one that does not count."""
        torch.set_num_threads(self._threads)
        return time_calls(self._batch, steps)

    def _batch(self) -> torch.Tensor:
        return torch.stack([self._policy(image) for image in self._images])


class Session:
    """A policy, with all cores and with one."""

    def __init__(self) -> None:
        warnings.simplefilter("ignore")
        self._loaders: dict[str, Loader] = {}

    def answer(self, command: dict[str, Any]) -> Any:
        """Makes the loaders of a policy, or runs one of them."""
        if "policy" not in command:
            return self._loaders[command["name"]].run(command["steps"])
        threads = {"torchvision": count_cores(), "torchvision, 1 thread": 1}
        self._loaders = {name: Loader(**command, threads=count) for name, count in threads.items()}
        versions = {m.__name__: m.__version__ for m in (torch, torchvision)}
        return {"names": list(self._loaders), "versions": versions}


if __name__ == "__main__":
    serve(Session().answer)
