"""Runs of one table that were trained in different environments, which their numbers may show."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ENVIRONMENT = "environment.json"

_SAID = ("device", "code", "machine", "processes", "threads", "versions.torch", "versions.n2nfx")


def unlike(folders: Iterable[Path]) -> Iterator[str]:
    """What is not the same of all environments that finished runs were trained in: one sentence.

    What cannot be read is left out; a run that goes on says so.
    """
    found: dict[str, dict[str, None]] = {key: {} for key in _SAID}
    for folder in folders:
        for environment in _environments(folder):
            for key in _SAID:
                found[key][_value(environment, key)] = None
    differ = {key: values for key, values in found.items() if len(values) > 1}
    if differ:
        told = (f"{key} {' or '.join(sorted(values))}" for key, values in differ.items())
        yield f"the runs were trained in different environments: {'; '.join(told)}"


def _environments(folder: Path) -> list[Mapping[str, Any]]:
    try:
        found = json.loads((folder / ENVIRONMENT).read_bytes())
    except (OSError, ValueError):
        return []
    whole = found if isinstance(found, list) else []
    return [one for one in whole if isinstance(one, dict) and isinstance(one.get("versions"), dict)]


def _value(environment: Mapping[str, Any], key: str) -> str:
    group, _, name = key.rpartition(".")
    return str((environment[group] if group else environment).get(name, "unknown"))
