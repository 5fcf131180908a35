"""Which data sets are there, and the command that brings one that is not.

Where they are looked for, `n2nfx.catalogue` knows. Only names are looked at.
"""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from n2nfx import catalogue
from n2nfx.doctor.finding import Finding


def find_data() -> Iterator[Finding]:
    """What was found of each data set."""
    own, root = os.environ.get("N2NFX_DATA"), catalogue.data_root()
    if own and not root.is_dir():
        told = f"N2NFX_DATA is {own}, which is no folder"
        yield Finding("data", "N2NFX_DATA", "warning", told, f"mkdir -p {shlex.quote(own)}")
    for one in catalogue.ENTRIES.values():
        yield _found(one, root)


def _found(one: catalogue.Entry, root: Path) -> Finding:
    found = catalogue.find(one, root)
    if found.state == "whole":
        return Finding("data", one.name, "ok", str(found.folder))
    remedy = catalogue.remedy(one, root)
    told = catalogue.absence(one, root)
    state = "warning" if found.state == "partial" else "missing"
    return Finding("data", one.name, state, told, remedy)
