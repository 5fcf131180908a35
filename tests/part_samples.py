"""Models whose forward looks at values: what calls the layers stays Python, the layers' modules
can be graphs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Backbone(nn.Module):
    """Maps of two levels; the smaller is laid over the larger by its size, as in an FPN.

    Its pooling rounds down, so that no stride says how large a map is at every size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.down = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.lateral = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        large = self.body(self.stem(x))
        small = self.down(large)
        spread = functional.interpolate(small, size=large.shape[-2:], mode="nearest")
        return {"large": self.lateral(large) + spread, "small": small}


class Head(nn.Module):
    """Shared layers over a list of maps, flattened by their sizes, and its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.second = nn.Conv2d(8, 2 * 3, 3, padding=1)

    def forward(self, maps: list[Tensor], scaled: bool = False) -> Tensor:
        found: list[Tensor] = []
        for one in maps:
            out = self.second(self.first(one))
            n, _, height, width = out.shape
            out = out.view(n, 2, 3, height, width).permute(0, 3, 4, 1, 2)
            found.append(out.reshape(n, height * width * 2, 3))
        return torch.cat(found, 1)

    def loss(self, found: Tensor, targets: Tensor) -> Tensor:
        return (found.mean((1, 2)) - targets).square().sum() + self.second.weight.square().mean()


class Detector(nn.Module):
    """Keeps what scores above the mean: how much that is depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.head = Head()
        self.judge = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh())

    def forward(self, images: list[Tensor], targets: Tensor | None = None) -> Any:
        batch = torch.stack([one - 0.5 for one in images])
        maps = list(self.backbone(batch).values())
        found = self.head(maps)
        kept = found[found[..., 0] > found[..., 0].mean()]
        judged = self.judge(kept)
        if self.training:
            assert targets is not None
            return {"head": self.head.loss(found, targets), "judge": judged.square().mean()}
        return [{"boxes": judged[judged[:, 0] > judged[:, 0].mean()], "scores": kept[:, 0]}]


def detector() -> Detector:
    """One with numbers of its own, the same each time."""
    torch.manual_seed(0)
    return Detector()


def pictures(count: int, *size: int) -> Tensor:
    """Pictures, the same each time."""
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(count))
