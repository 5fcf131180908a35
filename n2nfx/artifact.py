"""An outcome on disk: a directory with `plan.json`, `weights.safetensors` and `MANIFEST.sha256`.

plan.json        what was done, as canonical JSON, with two keys of this file's own: `format`, and
                 `weights`, the shape, dtype and kept count of every weight that has a mask.
weights          a weight with a mask is stored by its code (`n2nfx.gapcode`): `gap/NAME` and
                 `val/NAME`, or `dense/NAME` and `bits/NAME`, or `dense/NAME` alone. Every other
                 tensor is `dense/NAME`, as it is.
MANIFEST.sha256  the two files' SHA-256, as `sha256sum -c` reads them.

Nothing here is ever unpickled, and a file is parsed only after its hash was found right.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from n2nfx import atomic, gapcode
from n2nfx.errors import CannotOperate, DamagedFile, UsageError

_VERSION = 2
FORMAT = f"n2nfx.artifact/{_VERSION}"
PLAN = "plan.json"
WEIGHTS = "weights.safetensors"
MANIFEST = "MANIFEST.sha256"
RESERVED = ("format", "weights")  # the plan's keys that `write` adds

_FILES = (PLAN, WEIGHTS, MANIFEST)
_KIND = atomic.Kind("an artifact", names=_FILES, proof=(PLAN, MANIFEST))
_LINES = rf"([0-9a-f]{{64}})  {re.escape(PLAN)}\n([0-9a-f]{{64}})  {re.escape(WEIGHTS)}\n".encode()

# No artifact comes near these; they keep a foreign one from filling the memory.
_MOST_TEXT = 2**28
_MOST_ELEMENTS = 2**40
_MOST_DIMENSIONS = 32

_FLOATS: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")
}
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
_STORABLE = (*_FLOATS.values(), *_INTEGERS)

# What safetensors raises: for a header, for a dtype that torch has not, and for odd shapes.
_ODD = (SafetensorError, KeyError, AssertionError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, eq=False)
class Artifact:
    """What an artifact's directory holds.

    plan is JSON data and has the keys in RESERVED; tensors has every state entry, dense, on the
    CPU, with +0 wherever a mask drops a weight; masks has a bool tensor for each masked weight.
    """

    plan: dict[str, Any]
    tensors: dict[str, Tensor]
    masks: dict[str, Tensor]


def require_free(directory: Path, force: bool) -> None:
    """Raise UsageError where `write` would, for what stands at `directory`: to ask beforehand."""
    atomic.require_free(directory, _KIND, force)


def write(
    directory: Path,
    plan: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    *,
    force: bool = False,
) -> tuple[Path, ...]:
    """Write an artifact so that `directory` has, at every moment, the old one whole or the new one.

    plan is JSON data without the keys in RESERVED; tensors are state entries by name; masks are
    bool tensors by weight name, each of its weight's shape, and what they drop is not stored. Tied
    tensors are stored under each of their names. Returns the paths of the files. Where `directory`
    exists, force replaces it if it is empty or an artifact, and nothing replaces anything else.

    Raises UsageError (target exists, or arguments that do not fit together) and CannotOperate
    (a tensor that has no place in such a file, a full disk, no permission).
    """
    stored, declared = _encoded(tensors, masks)
    data = {PLAN: _plan_text(plan, declared), WEIGHTS: save(stored)}
    lines = [f"{hashlib.sha256(data[name]).hexdigest()}  {name}\n" for name in data]
    atomic.put(directory, {**data, MANIFEST: "".join(lines).encode()}, _KIND, force=force)
    return tuple(directory / name for name in _FILES)


def read(directory: Path) -> Artifact:
    """Read an artifact back after verifying all of it.

    Raises DamagedFile, which names the file, for anything that is missing, damaged or foreign.
    """
    _check_listing(directory)
    plan_digest, weights_digest = _digests(directory / MANIFEST)
    plan = _parsed_plan(directory / PLAN, _checked_bytes(directory / PLAN, plan_digest))
    path = directory / WEIGHTS
    stored = _parsed_weights(path, _checked_bytes(path, weights_digest))
    codes, tensors = _sorted_out(path, plan["weights"], stored)
    masks: dict[str, Tensor] = {}
    for name, code in codes.items():
        tensors[name], masks[name] = _decoded(directory, name, plan["weights"][name], code)
    return Artifact(plan, dict(sorted(tensors.items())), masks)


def verify(directory: Path) -> dict[str, Any]:
    """Check all that `read` checks; return the plan. Raises as `read` does."""
    return read(directory).plan


# From memory to bytes


def _encoded(
    tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The entries of the weights file, and what the plan says of the weights with a mask."""
    if unknown := [name for name in masks if name not in tensors]:
        raise UsageError(f"mask {unknown[0]!r}: there is no tensor of that name")
    stored: dict[str, Tensor] = {}
    declared: dict[str, Any] = {}
    for name, tensor in tensors.items():
        tensor = _on_cpu(name, tensor)
        if name not in masks:
            # A copy: the file's tensors may not share anything.
            stored[f"dense/{name}"] = tensor.clone(memory_format=torch.contiguous_format)
            continue
        mask = masks[name].detach().cpu()
        code = _code(name, tensor, mask)
        stored |= {f"{form}/{name}": part for form, part in code.items()}
        dtype, kept = str(tensor.dtype).removeprefix("torch."), int(mask.count_nonzero())
        declared[name] = {"shape": list(tensor.shape), "dtype": dtype, "kept": kept}
    return stored, declared


def _on_cpu(name: object, tensor: object) -> Tensor:
    """A state entry that can be stored, on the CPU and without a gradient."""
    if not isinstance(name, str) or name.encode(errors="replace").decode() != name:
        raise UsageError(f"tensor {name!r}: its name is not a text that UTF-8 can hold")
    if not isinstance(tensor, Tensor):
        raise CannotOperate(
            f"state entry {name!r} is a {type(tensor).__name__}, not a tensor; an artifact holds "
            "tensors only: put what it says into the plan"
        )
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in _STORABLE:
        raise CannotOperate(
            f"tensor {name!r} ({tensor.dtype}, {tensor.layout}, on {tensor.device}) cannot be "
            "stored: an artifact holds real dense tensors of the plain float, integer and bool "
            "dtypes; convert it first"
        )
    return tensor.detach().cpu()


def _code(name: str, weight: Tensor, mask: Tensor) -> dict[str, Tensor]:
    if weight.dtype not in _FLOATS.values():
        raise CannotOperate(
            f"weight {name!r} has a mask and is {weight.dtype}; only {', '.join(_FLOATS)} "
            "weights can have one"
        )
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise UsageError(
            f"mask {name!r} is {mask.dtype} of shape {list(mask.shape)}; its weight needs a "
            f"torch.bool one of shape {list(weight.shape)}"
        )
    return gapcode.encode(weight, mask)


def _plan_text(plan: Mapping[str, Any], declared: dict[str, Any]) -> bytes:
    """plan.json: sorted, indented by 2, no NaN, a newline at the end."""
    for key in RESERVED:
        if key in plan:
            raise UsageError(f"plan key {key!r} is reserved: the artifact writes it itself")
    whole = {**plan, "format": FORMAT, "weights": declared}
    try:
        text = json.dumps(whole, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)
        data = f"{text}\n".encode()
        survives = json.loads(data) == whole
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the plan is not JSON data: {error}") from error
    if not survives:
        raise UsageError(
            "the plan would not come back from JSON as it is; use lists instead of tuples, and "
            "strings as keys"
        )
    return data


# From the disk to bytes


def _damaged(path: Path, what: str) -> DamagedFile:
    return DamagedFile(f"{path}: {what}; restore it or write the artifact again")


def _check_listing(directory: Path) -> None:
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise DamagedFile(
            f"{directory}: is no directory that can be read: {error.strerror}; check the path"
        ) from error
    for name in _FILES:
        if name not in names:
            raise _damaged(directory / name, "is missing")
    if others := sorted(set(names).difference(_FILES)):
        raise DamagedFile(f"{directory}: {others[0]!r} is no part of the artifact; move it away")


def _digests(path: Path) -> tuple[str, str]:
    """The manifest's hashes of the plan and of the weights."""
    match = re.fullmatch(_LINES, _bytes(path))
    if match is None:
        what = f"is not a line '<SHA-256>  <file>' for {PLAN} and one for {WEIGHTS}"
        raise _damaged(path, f"{what}, and nothing else")
    return match[1].decode(), match[2].decode()


def _checked_bytes(path: Path, digest: str) -> bytes:
    data = _bytes(path)
    if hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(path, f"does not have the SHA-256 that {MANIFEST} gives: it changed")
    return data


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise _damaged(path, "is not a file")
        size = path.stat().st_size
        if path.name != WEIGHTS and size > _MOST_TEXT:
            raise _damaged(path, f"has {size} bytes, more than any such file")
        return path.read_bytes()
    except OSError as error:
        raise DamagedFile(f"{path}: cannot be read: {error.strerror}") from error


# From bytes to memory


def _parsed_plan(path: Path, data: bytes) -> dict[str, Any]:
    """plan.json's object, of this format."""
    try:
        plan = json.loads(
            data.decode(),
            object_pairs_hook=_without_twins,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"is not such JSON as is written here: {error}") from error
    if not isinstance(plan, dict):
        raise _damaged(path, f"is a JSON {type(plan).__name__}, not an object")
    _check_format(path, plan.get("format"))
    if not isinstance(plan.get("weights"), dict):
        raise _damaged(path, "has no object 'weights'")
    return plan


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice in one object")
        found[key] = value
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _check_format(path: Path, found: object) -> None:
    if found == FORMAT:
        return
    match = re.fullmatch(r"n2nfx\.artifact/([0-9]{1,9})", str(found))
    if match and int(match[1]) > _VERSION:
        raise DamagedFile(
            f"{path}: was written by a newer n2nfx (format {found}; this one reads {FORMAT}); "
            "update n2nfx, or write the artifact again with this one"
        )
    raise _damaged(path, f"has the format {found!r}, where {FORMAT!r} is known")


def _parsed_weights(path: Path, data: bytes) -> dict[str, Tensor]:
    """The stored entries by their keys, each of a dtype that `write` writes."""
    try:
        stored = load(data)
    except _ODD as error:
        what = f"is not such a safetensors file as is written here: {error}"
        raise _damaged(path, what) from error
    for key, tensor in stored.items():
        if tensor.dtype not in _STORABLE:
            raise _damaged(path, f"{key!r} is {tensor.dtype}, which is never written")
        if tensor.dtype == torch.bool and (tensor.view(torch.uint8) > 1).any():
            raise _damaged(path, f"{key!r} is bool and has a byte that is neither 0 nor 1")
    return stored


def _sorted_out(
    path: Path, masked: Iterable[str], stored: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The codes of the weights that have a mask, and the other tensors."""
    codes: dict[str, dict[str, Tensor]] = {name: {} for name in masked}
    plain: dict[str, Tensor] = {}
    for key, tensor in stored.items():
        form, slash, name = key.partition("/")
        if slash and name in codes:
            codes[name][form] = tensor
        elif slash and form == "dense":
            plain[name] = tensor
        else:
            raise _damaged(path, f"holds {key!r}, of which {PLAN} says nothing")
    return codes, plain


def _decoded(
    directory: Path, name: str, entry: object, code: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """A weight and its mask, as the plan's `entry` declares it."""
    shape, dtype, kept = _declared(directory / PLAN, name, entry)
    try:
        weight, mask = gapcode.decode(code, shape, dtype)
    except gapcode.CodeError as error:
        raise _damaged(directory / WEIGHTS, f"weight {name!r} {error}") from error
    if (found := int(mask.count_nonzero())) != kept:
        what = f"weight {name!r} keeps {found} elements, and {PLAN} says {kept}"
        raise _damaged(directory / WEIGHTS, what)
    return weight, mask


def _declared(path: Path, name: str, entry: object) -> tuple[tuple[int, ...], torch.dtype, int]:
    """A weight's shape, dtype and kept count, of which no more than the types are checked."""
    if not isinstance(entry, dict) or set(entry) != {"shape", "dtype", "kept"}:
        raise _damaged(path, f"weights: {name!r} needs shape, dtype and kept, and only those")
    shape, dtype, kept = entry["shape"], entry["dtype"], entry["kept"]
    if not _is_shape(shape):
        raise _damaged(path, f"weights: {name!r} has a shape that no weight has")
    if not isinstance(dtype, str) or dtype not in _FLOATS:
        raise _damaged(path, f"weights: {name!r} has dtype {dtype!r}, not {', '.join(_FLOATS)}")
    if type(kept) is not int:
        raise _damaged(path, f"weights: {name!r} cannot keep {kept!r}")
    return tuple(shape), _FLOATS[dtype], kept


def _is_shape(value: object) -> bool:
    """A list of sizes that torch can make a tensor of, an empty one included."""
    if not isinstance(value, list) or len(value) > _MOST_DIMENSIONS:
        return False
    whole = all(type(size) is int and size >= 0 for size in value)
    return whole and math.prod(max(size, 1) for size in value) <= _MOST_ELEMENTS
