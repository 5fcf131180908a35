"""The list of passes: those of the library, and those that other packages bring."""

import warnings
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any

import n2nfx.passes
from n2nfx.errors import UsageError

GROUP = "n2nfx.passes"  # the entry point group for passes of other packages


def passes() -> MappingProxyType[str, type]:
    """Every pass class by its name.

    A package that cannot be imported, or whose name is taken, is a warning and nothing else.
    """
    known: dict[str, type] = {}
    for name in n2nfx.passes.__all__:
        cls = getattr(n2nfx.passes, name)
        known[cls.name] = cls
    for point in entry_points(group=GROUP):
        try:
            cls: Any = point.load()
            if cls.name in known:
                raise UsageError(f"there is a pass {cls.name} already")
            if not hasattr(cls, "__dataclass_fields__"):
                raise UsageError(f"{cls.name} is no dataclass")
            known[cls.name] = cls
        except Exception as error:
            warnings.warn(f"the pass {point.name} ({point.value}) failed: {error}", stacklevel=2)
    return MappingProxyType(known)
