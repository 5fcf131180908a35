"""An outcome on disk: a directory with `plan.json`, `weights.safetensors` and `MANIFEST.sha256`.

plan.json        what was done, as canonical JSON, with two keys of this file's own: `format`, and
                 `weights`, the shape, dtype and kept count of every weight that has a mask.
weights          a weight with a mask is `gap/NAME` and `val/NAME`: the values that are kept, and a
                 byte for each that says how many dropped ones stand before it in flattened order
                 (255: skip 255 and go on; the code runs to less than 255 elements of the end).
                 Where that is no smaller, it is `dense/NAME` and `bits/NAME`, the mask packed
                 with the lowest bit first, or `dense/NAME` alone where everything is kept.
                 Every other tensor is `dense/NAME`, as it is.
MANIFEST.sha256  the two files' SHA-256, as `sha256sum -c` reads them.

Nothing here is ever unpickled, and a file is parsed only after its hash was found right.
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import math
import os
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from n2nfx.errors import CannotOperate, DamagedFile, UsageError

FORMAT = "n2nfx.artifact/1"
PLAN = "plan.json"
WEIGHTS = "weights.safetensors"
MANIFEST = "MANIFEST.sha256"
RESERVED = ("format", "weights")  # the plan's keys that `write` adds

_FILES = (PLAN, WEIGHTS, MANIFEST)
_FORMS = ("gap", "val", "dense", "bits")
_SKIP = 255
# No file of ours comes near these; they keep a foreign one from filling the memory.
_LIMITS = {PLAN: 2**28, WEIGHTS: 2**40, MANIFEST: 2**12}
_MOST_ELEMENTS = 2**40
_MOST_DIMENSIONS = 32

# Weights are handled as integers of their own width, so that every bit of a value survives.
_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
_FLOATS = {str(dtype).removeprefix("torch."): dtype for dtype in _BITS}
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
_STORABLE = frozenset((*_BITS, *_INTEGERS))

# What the library raises: for a header, for a dtype that torch has not, and for odd shapes.
_NOT_SAFETENSORS = (
    safetensors.SafetensorError,
    KeyError,
    AssertionError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, eq=False)
class Artifact:
    """What an artifact's directory holds.

    plan is JSON data and has the keys in RESERVED; tensors has every state entry, dense, on the
    CPU, with +0 wherever a mask drops a weight; masks has a bool tensor for each masked weight.
    """

    plan: dict[str, Any]
    tensors: dict[str, Tensor]
    masks: dict[str, Tensor]


@dataclass(frozen=True)
class _Declared:
    """What the plan says of one weight that has a mask."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    kept: int


@dataclass(frozen=True)
class _Opened:
    """An artifact's files, hashed and parsed; `parts` has each masked weight's entries by form."""

    plan: dict[str, Any]
    declared: dict[str, _Declared]
    parts: dict[str, dict[str, Tensor]]
    plain: dict[str, Tensor]


def write(
    directory: Path,
    plan: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    *,
    force: bool = False,
) -> tuple[Path, ...]:
    """Write an artifact so that `directory` has, at every moment, the old one whole or the new one.

    plan is JSON data without the keys in RESERVED; tensors are state entries by name, zero where
    masked; masks are bool tensors by weight name, each of its weight's shape. Tied tensors are
    stored under each of their names. Returns the paths of the files. Where `directory` exists,
    force replaces it if it is empty or an artifact, and nothing replaces anything else. (Where the
    system cannot exchange two directories in one step, being killed between two renames leaves
    the old one whole under a hidden name.) A writer that was killed leaves a hidden
    `.NAME.partial-*` beside `directory`, which is never read; none is cleaned away here, because
    it may be the work of another writer that is still alive.

    Raises UsageError (target exists, or arguments that do not fit together) and CannotOperate
    (a tensor that has no place in such a file, a full disk, no permission).
    """
    target = Path(os.path.realpath(directory))
    _refuse_occupied(target, force)
    contents = _contents(plan, tensors, masks)
    try:
        _publish(target, contents, force)
    except OSError as error:
        raise CannotOperate(_why_not_written(target, contents, error)) from error
    return tuple(directory / name for name in contents)


def read(directory: Path) -> Artifact:
    """Read an artifact back after verifying all of it.

    Raises DamagedFile, which names the file, for anything that is missing, damaged or foreign.
    """
    opened = _open(directory)
    tensors = dict(opened.plain)
    masks: dict[str, Tensor] = {}
    for name, declared in opened.declared.items():
        positions, values = _kept(directory / WEIGHTS, name, declared, opened.parts[name])
        tensors[name] = _scattered(declared, positions, values).view(declared.dtype)
        masks[name] = _scattered(declared, positions, np.ones(len(positions), dtype=np.bool_))
    return Artifact(opened.plan, dict(sorted(tensors.items())), masks)


def verify(directory: Path) -> dict[str, Any]:
    """Check all that `read` checks, building no weights and no masks; return the plan.

    Raises DamagedFile, which names the file, for anything that is missing, damaged or foreign.
    """
    opened = _open(directory)
    for name, declared in opened.declared.items():
        _kept(directory / WEIGHTS, name, declared, opened.parts[name])
    return opened.plan


# From memory to bytes


def _contents(
    plan: Mapping[str, Any], tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> dict[str, bytes]:
    """The artifact's files by name, complete."""
    for name in masks:
        if name not in tensors:
            raise UsageError(f"mask {name!r}: there is no tensor of that name")
    stored: dict[str, Tensor] = {}
    declared: dict[str, Any] = {}
    for name, tensor in tensors.items():
        copy = _on_cpu(name, tensor)
        if name not in masks:
            stored[f"dense/{name}"] = copy
            continue
        mask = _mask_of(name, copy, masks[name])
        stored |= {f"{form}/{name}": part for form, part in _encoded(name, copy, mask).items()}
        declared[name] = {
            "shape": list(copy.shape),
            "dtype": str(copy.dtype).removeprefix("torch."),
            "kept": int(np.count_nonzero(mask)),
        }
    contents = {PLAN: _plan_text(plan, declared), WEIGHTS: safetensors.torch.save(stored)}
    return {**contents, MANIFEST: _manifest({name: _sha256(contents[name]) for name in contents})}


def _on_cpu(name: object, tensor: object) -> Tensor:
    """A copy of a state entry that shares nothing: on the CPU, contiguous, without a gradient."""
    if not isinstance(name, str) or not _is_utf8(name):
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
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _mask_of(name: str, weight: Tensor, mask: Tensor) -> NDArray[np.bool_]:
    """A weight's mask in flattened order."""
    if weight.dtype not in _BITS:
        raise CannotOperate(
            f"weight {name!r} has a mask and is {weight.dtype}; only {', '.join(_FLOATS)} "
            "weights can have one"
        )
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise UsageError(
            f"mask {name!r} is {mask.dtype} of shape {list(mask.shape)}; its weight needs a "
            f"torch.bool one of shape {list(weight.shape)}"
        )
    return mask.detach().cpu().reshape(-1).numpy()


def _encoded(name: str, weight: Tensor, mask: NDArray[np.bool_]) -> dict[str, Tensor]:
    """A masked weight's entries by form: gaps and values, or dense and bits if that is smaller."""
    if mask.all():
        return {"dense": weight}
    bits = weight.reshape(-1).view(_BITS[weight.dtype]).numpy()
    positions = np.flatnonzero(mask)
    values = bits[positions]
    # Shifting out the sign leaves nothing of a zero, and something of everything else.
    lost = np.count_nonzero(bits << 1) - np.count_nonzero(values << 1)
    if lost:
        raise UsageError(
            f"weight {name!r}: {lost} of the elements that its mask drops are not zero; "
            "bake the masks before saving"
        )
    gaps = _gap_code(positions, len(mask))
    packed = np.packbits(mask, bitorder="little")
    if gaps.nbytes + values.nbytes <= bits.nbytes + packed.nbytes:
        return {"gap": torch.from_numpy(gaps), "val": torch.from_numpy(values).view(weight.dtype)}
    clean = torch.from_numpy(np.where(mask, bits, 0)).view(weight.dtype)  # no -0 where it drops
    return {"dense": clean.reshape(weight.shape), "bits": torch.from_numpy(packed)}


def _gap_code(positions: NDArray[np.intp], total: int) -> NDArray[np.uint8]:
    """One byte for each position, the gap before it, with a 255 for each 255 that are skipped.

    It skips on behind the last position as well, so that a code's length bounds the weight's
    size and a reader need not believe what the plan says of it.
    """
    gaps = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum(gaps // _SKIP + 1)
    covered = int(positions[-1]) + 1 if len(positions) else 0
    length = int(ends[-1]) if len(positions) else 0
    code = np.full(length + (total - covered) // _SKIP, _SKIP, dtype=np.uint8)
    code[ends - 1] = gaps % _SKIP
    return code


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
    if len(data) > _LIMITS[PLAN]:
        raise UsageError(f"the plan takes {len(data)} bytes; the most is {_LIMITS[PLAN]}")
    return data


def _manifest(digests: Mapping[str, str]) -> bytes:
    return "".join(f"{digests[name]}  {name}\n" for name in (PLAN, WEIGHTS)).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# From bytes to the disk


def _refuse_occupied(target: Path, force: bool) -> None:
    """Refuse a target that may not be written, before any work."""
    if not os.path.lexists(target):
        return
    if not os.path.isdir(target):
        raise UsageError(f"{target}: is a file, not a directory; name another place")
    if foreign := _what_is_foreign(target):
        raise UsageError(
            f"{target}: {foreign}, so neither --force nor force=True replaces it; "
            "name another directory"
        )
    if not force:
        raise UsageError(f"{target}: exists already; --force (force=True) replaces it")


def _what_is_foreign(directory: Path) -> str:
    """Why a directory must not be replaced; empty for an artifact and for an empty directory."""
    try:
        names = set(os.listdir(directory))
    except OSError as error:
        return f"cannot be looked into ({error.strerror})"
    if others := sorted(names.difference(_FILES)):
        return f"holds {others[0]!r}, which is no part of an artifact"
    if names and not names.issuperset((PLAN, MANIFEST)):
        return f"is no artifact: it does not have both {PLAN} and {MANIFEST}"
    return ""


def _publish(target: Path, contents: Mapping[str, bytes], force: bool) -> None:
    """Write the files beside the target and move them in; undo everything on any failure."""
    parent = target.parent
    missing = [folder for folder in (parent, *parent.parents) if not os.path.lexists(folder)]
    partial = target.with_name(f".{target.name}.partial-{secrets.token_hex(8)}")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            _sync_folder(folder.parent)
        _write_files(partial, contents)
        _move_in(partial, target, force)
    except BaseException:
        _discard(partial)
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    _discard(partial)  # after an exchange this is the artifact that was replaced


def _write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    folder.mkdir()
    for name, data in contents.items():
        with (folder / name).open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Make the folder's names durable; a few network file systems cannot, and say EINVAL."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def _move_in(partial: Path, target: Path, force: bool) -> None:
    """Give the finished folder its name; what stood there before is then at `partial`."""
    exchanged = _rename_or_exchange(partial, target, force)
    try:
        # Somebody may have put files there since the first look.
        if exchanged and (foreign := _what_is_foreign(partial)):
            raise UsageError(f"{target}: {foreign}, so it is not replaced; name another directory")
        _sync_folder(target.parent)
    except BaseException:
        if exchanged:
            _exchange(partial, target)
        else:
            os.rename(target, partial)
        raise


def _rename_or_exchange(partial: Path, target: Path, force: bool) -> bool:
    """Move in by a rename, which replaces an empty folder at most; with force, by an exchange."""
    try:
        os.rename(partial, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not force:
            raise UsageError(
                f"{target}: appeared meanwhile; --force (force=True) replaces it"
            ) from error
        _exchange(partial, target)
        return True
    return False


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change names: in one step where the system can, else in three."""
    if _exchange_at_once(one, other):
        return
    aside = one.with_name(f"{one.name}.aside")
    try:
        os.rename(other, aside)
        os.rename(one, other)
        os.rename(aside, one)
    except BaseException:
        if os.path.lexists(aside):
            if os.path.lexists(other):
                os.rename(other, one)
            os.rename(aside, other)
        raise


def _exchange_at_once(one: Path, other: Path) -> bool:
    """Linux renameat2(RENAME_EXCHANGE); False where the libc or the file system has none."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of <fcntl.h> and <linux/fs.h>
    if renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _discard(folder: Path) -> None:
    """Delete an artifact's three files and its folder, and nothing that somebody else put there."""
    for name in (WEIGHTS, PLAN, MANIFEST):
        with contextlib.suppress(OSError):
            os.unlink(folder / name)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _why_not_written(target: Path, contents: Mapping[str, bytes], error: OSError) -> str:
    room = f"{sum(len(data) for data in contents.values())} bytes are needed"
    words = {
        errno.ENOSPC: f"the disk is full; {room}",
        errno.EDQUOT: f"the disk quota is used up; {room}",
        errno.EACCES: "you may not write there",
        errno.EPERM: "you may not write there",
        errno.EROFS: "the file system is read-only",
        errno.EEXIST: "a part of its path is a file, not a directory",
        errno.ENOTDIR: "a part of its path is a file, not a directory",
    }
    cause = words.get(error.errno or 0, error.strerror or str(error))
    return f"{target}: cannot be written: {cause}; nothing was changed; name another directory"


# From the disk to bytes


def _damaged(path: Path, what: str) -> DamagedFile:
    return DamagedFile(f"{path}: {what}; restore it or write the artifact again")


def _open(directory: Path) -> _Opened:
    """Check the names, the hashes and the two files' syntax, and sort the stored entries."""
    _check_listing(directory)
    digests = _digests(directory / MANIFEST)
    plan = _parsed_plan(directory / PLAN, _checked_bytes(directory / PLAN, digests[PLAN]))
    declared = {
        name: _declaration(directory / PLAN, name, entry) for name, entry in plan["weights"].items()
    }
    path = directory / WEIGHTS
    stored = _parsed_weights(path, _checked_bytes(path, digests[WEIGHTS]))
    parts, plain = _sorted_out(path, declared, stored)
    return _Opened(plan, declared, parts, plain)


def _check_listing(directory: Path) -> None:
    if not os.path.lexists(directory):
        raise DamagedFile(f"{directory}: there is no such directory; check the path")
    if not os.path.isdir(directory):
        raise DamagedFile(
            f"{directory}: is not a directory; an artifact is a directory with {', '.join(_FILES)}"
        )
    try:
        names = set(os.listdir(directory))
    except OSError as error:
        raise DamagedFile(f"{directory}: cannot be read: {error.strerror}") from error
    for name in _FILES:
        if name not in names:
            raise _damaged(directory / name, "is missing")
    if others := sorted(names.difference(_FILES)):
        raise DamagedFile(f"{directory}: {others[0]!r} is no part of the artifact; move it away")


def _checked_bytes(path: Path, digest: str | None) -> bytes:
    """A file's bytes, hashed first as a stream and read from the same open file after that."""
    try:
        if not path.is_file():
            raise _damaged(path, "is not a file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > _LIMITS[path.name]:
                raise _damaged(path, f"has {size} bytes, more than any such file")
            if digest is not None and hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise _damaged(path, f"does not have the SHA-256 that {MANIFEST} gives: it changed")
            file.seek(0)
            return file.read()
    except OSError as error:
        raise DamagedFile(f"{path}: cannot be read: {error.strerror}") from error


def _digests(path: Path) -> dict[str, str]:
    """The manifest's hashes by file name; only what `write` writes is accepted."""
    data = _checked_bytes(path, None)
    lines = re.findall(rb"^([0-9a-f]{64})  (.+)$", data, flags=re.MULTILINE)
    digests = {name.decode("utf-8", "replace"): digest.decode() for digest, name in lines}
    if set(digests) != {PLAN, WEIGHTS} or _manifest(digests) != data:
        raise _damaged(
            path,
            f"is not a line '<SHA-256>  <file>' for {PLAN} and one for {WEIGHTS}, and nothing else",
        )
    return digests


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
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twin!r} stands twice in one object")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _check_format(path: Path, found: object) -> None:
    if found == FORMAT:
        return
    name, number = FORMAT.split("/")
    match = re.fullmatch(rf"{re.escape(name)}/([1-9][0-9]{{0,8}})", str(found))
    if match and int(match[1]) > int(number):
        raise DamagedFile(
            f"{path}: was written by a newer n2nfx (format {found}; this one reads {FORMAT}); "
            "update n2nfx, or write the artifact again with this one"
        )
    raise _damaged(path, f"has the format {found!r}, where {FORMAT!r} is known")


def _declaration(path: Path, name: str, entry: object) -> _Declared:
    """What the plan says of a weight, checked so far as that goes without the weight."""
    if not isinstance(entry, dict) or set(entry) != {"shape", "dtype", "kept"}:
        raise _damaged(path, f"weights: {name!r} needs shape, dtype and kept, and only those")
    shape, dtype, kept = entry["shape"], entry["dtype"], entry["kept"]
    if not _is_shape(shape):
        raise _damaged(path, f"weights: {name!r} has a shape that is no list of sizes")
    if math.prod(max(size, 1) for size in shape) > _MOST_ELEMENTS:
        raise _damaged(path, f"weights: {name!r} has an absurd shape, {shape}")
    if not isinstance(dtype, str) or dtype not in _FLOATS:
        raise _damaged(path, f"weights: {name!r} has dtype {dtype!r}, not {', '.join(_FLOATS)}")
    if type(kept) is not int or not 0 <= kept <= math.prod(shape):
        raise _damaged(path, f"weights: {name!r} of shape {shape} cannot keep {kept!r}")
    return _Declared(tuple(shape), _FLOATS[dtype], kept)


def _is_shape(value: object) -> bool:
    if not isinstance(value, list) or len(value) > _MOST_DIMENSIONS:
        return False
    return all(type(size) is int and size >= 0 for size in value)


# From bytes to memory


def _parsed_weights(path: Path, data: bytes) -> dict[str, Tensor]:
    """The stored entries by their keys, each of a dtype that `write` writes."""
    try:
        stored = safetensors.torch.load(data)
    except _NOT_SAFETENSORS as error:
        what = f"is not such a safetensors file as is written here: {error}"
        raise _damaged(path, what) from error
    for key, tensor in stored.items():
        if tensor.dtype not in _STORABLE:
            raise _damaged(path, f"{key!r} is {tensor.dtype}, which is never written")
        if tensor.dtype == torch.bool and (tensor.view(torch.uint8) > 1).any():
            raise _damaged(path, f"{key!r} is bool and has a byte that is neither 0 nor 1")
    return stored


def _sorted_out(
    path: Path, declared: Mapping[str, _Declared], stored: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The masked weights' entries by weight and form, and the other tensors by name."""
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in declared}
    plain: dict[str, Tensor] = {}
    for key, tensor in stored.items():
        form, slash, name = key.partition("/")
        if slash and form in _FORMS and name in parts:
            parts[name][form] = tensor
        elif slash and form == "dense":
            plain[name] = tensor
        else:
            raise _damaged(path, f"holds {key!r}, of which {PLAN} says nothing")
    return parts, plain


def _kept(
    path: Path, name: str, declared: _Declared, parts: Mapping[str, Tensor]
) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Where a weight's kept elements stand in flattened order, and their bits."""
    forms = set(parts)
    if forms == {"gap", "val"}:
        positions, values = _from_gaps(path, name, declared, parts["gap"], parts["val"])
    elif forms in ({"dense", "bits"}, {"dense"}):
        positions, values = _from_dense(path, name, declared, parts["dense"], parts.get("bits"))
    else:
        raise _damaged(path, f"weight {name!r} has {', '.join(sorted(forms)) or 'nothing'} stored")
    if not len(positions) == len(values) == declared.kept:
        raise _damaged(
            path,
            f"weight {name!r} has {len(positions)} positions and {len(values)} values, and "
            f"{PLAN} says {declared.kept}",
        )
    return positions, values


def _from_gaps(
    path: Path, name: str, declared: _Declared, gap: Tensor, val: Tensor
) -> tuple[NDArray[np.intp], NDArray[Any]]:
    if gap.dtype != torch.uint8 or gap.ndim != 1 or val.dtype != declared.dtype or val.ndim != 1:
        raise _damaged(path, f"weight {name!r} has gaps or values of a wrong dtype or shape")
    code = gap.numpy()
    skips = code == _SKIP
    ends = np.cumsum(np.where(skips, _SKIP, code.astype(np.intp) + 1))
    covered = int(ends[-1]) if len(ends) else 0
    total = math.prod(declared.shape)
    # With this, the weight is at most 255 times as large as its code, whatever the plan says.
    if not covered <= total < covered + _SKIP:
        raise _damaged(
            path, f"weight {name!r} has {total} elements, and its gap code runs to {covered}"
        )
    return ends[~skips] - 1, val.view(_BITS[val.dtype]).numpy()


def _from_dense(
    path: Path, name: str, declared: _Declared, dense: Tensor, packed: Tensor | None
) -> tuple[NDArray[np.intp], NDArray[Any]]:
    if dense.dtype != declared.dtype or tuple(dense.shape) != declared.shape:
        raise _damaged(
            path,
            f"weight {name!r} is {dense.dtype} of shape {list(dense.shape)}, and {PLAN} says "
            f"{declared.dtype} of shape {list(declared.shape)}",
        )
    bits = dense.reshape(-1).view(_BITS[dense.dtype]).numpy()
    if packed is None:
        return np.arange(len(bits)), bits
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (math.ceil(len(bits) / 8),):
        raise _damaged(path, f"weight {name!r} has a packed mask of a wrong dtype or length")
    positions = np.flatnonzero(np.unpackbits(packed.numpy(), bitorder="little"))
    if len(positions) and positions[-1] >= len(bits):
        raise _damaged(path, f"weight {name!r} has a mask that runs beyond its end")
    values = bits[positions]
    if np.count_nonzero(bits) != np.count_nonzero(values):
        raise _damaged(path, f"weight {name!r} is not zero everywhere where its mask drops it")
    return positions, values


def _scattered(declared: _Declared, positions: NDArray[np.intp], values: NDArray[Any]) -> Tensor:
    """A tensor of the weight's shape with the values at their positions, and zero elsewhere."""
    flat = np.zeros(math.prod(declared.shape), dtype=values.dtype)
    flat[positions] = values
    return torch.from_numpy(flat).reshape(declared.shape)
