"""The numbers that the paper prints, read from a file beside this one."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import NamedTuple

NETWORKS = {"vgg19": "n2nfx:vgg19_cifar", "resnet50": "n2nfx:resnet50_cifar"}
"""What we call the networks that it has."""


class Place(NamedTuple):
    """A place in Table 3: a network, a method, and the density that it was pruned to."""

    network: str
    method: str
    density: float


@cache
def table3() -> Mapping[Place, float]:
    """F by place, as Table 3 prints it."""
    text = files("n2nfx.paper").joinpath("table3.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)["table3"]
    return MappingProxyType(
        {Place(row["model"], row["method"], row["density"]): row["frobenius"] for row in rows}
    )
