"""A layer's weights brought together: one nonnegative number for each pair of channels.

The kernel's entries are aggregated, and so are all that lead from one node: the places of a
channel that was flattened before a linear layer.
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy import sparse

from n2nfx.connectivity.graph import Aggregation, Matrix, shape_of, stored
from n2nfx.connectivity.relations import by_group
from n2nfx.connectivity.rows import Rows
from n2nfx.connectivity.weights import Use
from n2nfx.errors import CannotOperate

_ROOM = 2**23  # weights that are turned into float64 at a time


def aggregate(
    use: Use, read: Rows, how: Aggregation, name: str, scale: np.ndarray | None = None
) -> tuple[np.ndarray, Matrix]:
    """The nodes that a call of a layer reads, ascending, and its weights (out, nodes) from them.

    `read` says which nodes the layer's input channels are, `scale` (out,) what the outputs are
    multiplied by. Masked entries count for nothing, whatever they are. Raises `CannotOperate` for
    kept ones that are not finite.
    """
    nodes, places = np.unique(read.nodes, return_inverse=True)
    parts = _by_group if use.groups > 1 else _at_once
    found = [_finished(part, how) for part in parts(use, read, places, nodes.size, how)]
    if scale is not None and how in ("abs_sum", "l2"):
        found = _scaled(found, scale)
    for part in found:
        _require_finite(part, name)
    return nodes, stored(found)


def _at_once(
    use: Use, read: Rows, places: np.ndarray, count: int, how: Aggregation
) -> Iterator[Matrix]:
    """Some output channels at a time, of a layer whose outputs read all inputs."""
    order = np.argsort(places, kind="stable")
    columns, starts = read.owners[order], np.searchsorted(places[order], np.arange(count))
    whole = np.array_equal(columns, np.arange(read.size))
    rows = _powers(use, how)
    for powers in [np.concatenate(list(rows)).T] if use.transposed else rows:
        if not whole:
            powers = powers[:, columns]
        if count < columns.size:
            powers = np.add.reduceat(powers, starts, axis=1)
        yield stored([powers]) if count else powers


def _by_group(
    use: Use, read: Rows, places: np.ndarray, count: int, how: Aggregation
) -> Iterator[Matrix]:
    """All at once, of a layer whose outputs each read the inputs of their group."""
    entries = np.concatenate(list(_powers(use, how)))
    kept = by_group(entries, use.groups, use.transposed)
    group, out, into = kept.nonzero()
    ends = group * kept.shape[1] + out, group * kept.shape[2] + into
    joins = sparse.csr_array(
        (kept[group, out, into], ends), shape=(kept.shape[0] * kept.shape[1], read.size)
    )
    nodes = sparse.csr_array((read.weights, places, read.starts), shape=(read.size, count))
    yield sparse.csr_array(joins @ nodes)


def _powers(use: Use, how: Aggregation) -> Iterator[np.ndarray]:
    """What adds up over the kernel, in float64, laid out as the weight is, some rows at a time."""
    weight = None if how in ("count", "binary") else use.tensor()
    mask = None if use.kept is None else use.kept.mask
    if mask is not None and not any(mask.stride()):  # one that keeps all
        mask = None
    one = torch.ones((), dtype=torch.uint8, device="cpu")
    weight = one.expand(use.shape) if weight is None else weight.cpu()
    step = max(1, _ROOM // max(weight[:1].numel(), 1))
    for first in range(0, use.shape[0], step):
        part = weight[first : first + step]
        if mask is not None:
            part = torch.where(mask[first : first + step].cpu(), part, part.new_zeros(()))
        yield _summed(part, squared=how == "l2")


def _summed(part: torch.Tensor, squared: bool) -> np.ndarray:
    """Absolute values or squares, summed over the kernel."""
    flat = part.flatten(2) if part.dim() > 2 else part
    magnitudes = flat.double().square() if squared else flat.abs()
    if part.dim() > 2:
        return magnitudes.sum(2, dtype=torch.float64).numpy()
    return magnitudes.double().numpy()


def _finished(powers: Matrix, how: Aggregation) -> Matrix:
    if how == "l2":
        return np.sqrt(powers) if isinstance(powers, np.ndarray) else powers.power(0.5)
    if how == "binary":
        return capped(powers)
    return powers


def capped(weights: Matrix) -> Matrix:
    """At most 1 each, in place."""
    values = weights if isinstance(weights, np.ndarray) else weights.data
    np.minimum(values, 1.0, out=values)
    return weights


def _scaled(parts: list[Matrix], scale: np.ndarray) -> list[Matrix]:
    ends = np.cumsum([shape_of(part)[0] for part in parts])[:-1]
    found: list[Matrix] = []
    for part, own in zip(parts, np.split(scale, ends), strict=True):
        found.append(
            part * own[:, None]
            if isinstance(part, np.ndarray)
            else sparse.csr_array(sparse.diags_array(own) @ part)
        )
    return found


def _require_finite(part: Matrix, name: str) -> None:
    values = part if isinstance(part, np.ndarray) else part.data
    if not np.isfinite(values).all():
        raise CannotOperate(
            f"the weights of {name} are not all finite numbers, and no graph can have NaN or "
            "infinite edges; look at what the network was initialized or trained with"
        )
