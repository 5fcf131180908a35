"""How a detector of torchvision is called: with lists of pictures of any sizes, and in training
with what is in them."""

from typing import Any

import torch
from torch import Tensor, nn

# Other sizes than that of the example, and each its own.
_SIZES = ((150, 210), (200, 120))
_ALONE = (97, 131)
_KEYPOINTS = 17


def is_detector(model: nn.Module) -> bool:
    """Whether a model is one of torchvision's detectors."""
    return type(model).__module__.startswith("torchvision.models.detection.")


def make_small(model: Any) -> None:
    """Let a detector look at pictures of some 200 pixels instead of 800, and tell all it finds."""
    if model.transform.fixed_size is None:
        model.transform.min_size, model.transform.max_size = (160,), 256
    for part in model.modules():
        if hasattr(part, "score_thresh"):
            part.score_thresh = 0.0


def evaluated(generator: torch.Generator) -> list[tuple[Any, ...]]:
    """The arguments of calls in evaluation: two pictures of two sizes, and one of a third."""
    both = [_picture(size, generator) for size in _SIZES]
    return [(both,), ([_picture(_ALONE, generator)],)]


def trained(generator: torch.Generator) -> list[tuple[Any, ...]]:
    """The arguments of a call in training: pictures and what is in them."""
    pictures = [_picture(size, generator) for size in _SIZES]
    return [(pictures, [_target(one.shape[1:], generator) for one in pictures])]


def _picture(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.rand((3, *size), generator=generator)


def _target(size: torch.Size, generator: torch.Generator) -> dict[str, Tensor]:
    """Two things in a picture, with all that any of the detectors wants to know of them."""
    points = 15 + 60 * torch.rand((2, _KEYPOINTS, 2), generator=generator)
    return {
        "boxes": torch.tensor([[10.0, 12, 80, 90], [30, 20, 100, 110]]),
        "labels": torch.ones(2, dtype=torch.int64),
        "masks": (torch.rand((2, *size), generator=generator) > 0.5).to(torch.uint8),
        "keypoints": torch.cat([points, torch.ones(2, _KEYPOINTS, 1)], dim=-1),
    }
