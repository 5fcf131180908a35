"""A model's twin is what `copy.deepcopy` gives."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from n2nfx import models
from n2nfx.tracing.twins import twin


class Odd(nn.Module):
    """Attributes of every kind, modules that are shared or held in a list, and a cycle."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.again = self.one
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.one.weight
        self.held = [self.one, nn.ReLU(), {"tensor": torch.ones(2)}]
        self.sizes = {3: [1, 2], 4: (5, [6])}
        self.table = {"a": {1}, "b": ("c", 2.5, None)}
        self.register_buffer("buffer", torch.arange(3.0), persistent=False)
        self.me = [self]


class Own(nn.Module):
    """A module that says itself how it is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __deepcopy__(self, known: dict[int, Any]) -> "Own":
        made = Own()
        made.copies = self.copies + 1
        return made


MODELS: dict[str, Callable[[], nn.Module]] = {
    "odd": Odd,
    "one that copies itself": lambda: nn.Sequential(Own(), nn.Linear(2, 2)),
    "recurrent": lambda: nn.LSTM(3, 4, 2),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "parametrized": lambda: parametrizations.weight_norm(nn.Linear(3, 3)),
    "zoo": lambda: models.build("timm:ghostnet_050").module,
}


def outline(value: Any, seen: dict[int, int]) -> Any:
    """Classes, constants, tensors' bits, and which objects are one, in a form to be compared."""
    if isinstance(value, int | float | str | type(None) | torch.dtype | torch.device):
        return value
    if id(value) in seen:
        return "seen", seen[id(value)]
    seen[id(value)] = len(seen)
    if isinstance(value, Tensor):
        return type(value), value.requires_grad, value.tolist()
    if isinstance(value, dict):
        return type(value), [(key, outline(item, seen)) for key, item in value.items()]
    if isinstance(value, list | tuple | set):
        return type(value), [outline(item, seen) for item in value]
    if isinstance(value, nn.Module):
        return type(value), outline(vars(value), seen)
    return type(value)


@pytest.mark.parametrize("name", MODELS)
def test_a_twin_is_a_deep_copy(name: str) -> None:
    model = MODELS[name]()
    made, like = twin(model, {}), copy.deepcopy(model)
    assert outline(made, {}) == outline(like, {})
    before = outline(model, {})
    for parameter in made.parameters():
        nn.init.zeros_(parameter)
    next(iter(made.modules())).__dict__["new"] = 1
    assert outline(model, {}) == before


def test_what_is_known_is_put_in_the_place_of_its_original() -> None:
    model = Odd()
    blank = nn.Parameter(torch.empty(3, 3, device="meta"))
    made = twin(model, {id(model.one.weight): blank})
    assert made.one.weight is made.tied.weight is blank
    assert made.held[0] is made.one is made.again
    assert made.me[0] is made
