"""Channel graphs in files that other programs read, and read back equal; no torch, no pickle.

Whatever the format, a file holds every edge, the names of layers and channels, and one text (JSON)
with what the edges do not say: the groups, which weights a block is of, how they were aggregated.
"""

import csv
import io
import itertools
import json
import struct
import tokenize
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self, get_args
from xml.sax.saxutils import escape

import numpy as np
from scipy import io as scipy_io
from scipy import sparse

from n2nfx.atomic import as_path, put_file
from n2nfx.connectivity.graph import (
    Aggregation,
    Block,
    ChannelGraph,
    Group,
    Kind,
    Residual,
    shape_of,
    stored,
)
from n2nfx.errors import CannotOperate, DamagedFile, UsageError, did_you_mean, first_line

_MARK, _VERSION = "n2nfx channel graph", 2
_KEY = "n2nfx"  # under which a file has the text, where its format has a place for such
_SYMMETRIC = "%%MatrixMarket matrix coordinate real symmetric\n"
_MTX_ROW = [("target", np.int64), ("source", np.int64), ("weight", np.float64)]
_NONE = ("1 1 0",)  # a row to read and leave out, since no rows at all are warned of
_LINE = 1000  # characters that a line of Matrix Market may have, and some
_COLUMNS = (
    *("source", "target", "source_layer", "source_channel", "target_layer", "target_channel"),
    "weight",
)

# What readers of damaged files raise.
_DAMAGED = (
    ValueError, KeyError, TypeError, IndexError, OverflowError, EOFError, OSError, MemoryError,
    NotImplementedError, RecursionError, csv.Error, struct.error, zlib.error, zipfile.BadZipFile,
    ElementTree.ParseError, SyntaxError, tokenize.TokenError,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Edges:
    """Every edge once: its two nodes, the earlier first, and its weight."""

    sources: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, graph: ChannelGraph) -> Self:
        return cls(*graph.edge_list())

    @classmethod
    def of_matrix(cls, found: Any) -> Self:
        """Those of a symmetric matrix; raises `ValueError` for another."""
        matrix = sparse.csr_array(found)
        height, width = shape_of(matrix)
        if height != width or (matrix != matrix.T).count_nonzero():
            raise ValueError("the matrix is not symmetric")
        if matrix.diagonal().any():
            raise ValueError("an edge joins a node to itself")
        upper = sparse.triu(matrix, 1, format="coo")
        return cls(upper.coords[0], upper.coords[1], upper.data)


def save(graph: ChannelGraph, path: str | Path) -> Path:
    """Write a graph, at once or not at all, in the format that the name ends with.

    `.npz` is what `scipy.sparse.load_npz` reads (W, symmetric), `.mtx` Matrix Market (its lower
    half), `.graphml` what networkx and others read, `.csv` and `.parquet` lists of edges with the
    names of layers and channels (nodes are numbered from 0). Raises `UsageError` for another
    ending, `CannotOperate` where a package is missing or the file cannot be written.
    """
    place = as_path(path)
    put_file(place, _format_of(place).write(graph))
    return place


def require_graph_file(path: Path) -> None:
    """Raise `UsageError` where `save` would: where a name does not end with a format."""
    _format_of(path)


def load_graph(path: str | Path) -> ChannelGraph:
    """Read a graph that `save` wrote, equal to it; nothing in the file is run.

    Raises `UsageError` for another ending, and `DamagedFile` for a file that is missing, damaged or
    no channel graph.
    """
    place = as_path(path)
    read = _format_of(place).read
    if not place.is_file():
        raise DamagedFile(f"there is no file {place}")
    try:
        text, edges = read(place)
        return _graph(json.loads(text), edges)
    except _DAMAGED as error:
        raise DamagedFile(
            f"{place}: is damaged, or no channel graph that n2nfx wrote ({first_line(error)}); "
            "write it again with graph.save or n2nfx analyze --export"
        ) from error


def to_networkx(graph: ChannelGraph) -> Any:
    """A `networkx.Graph` of nodes 0 to n - 1, each with its layer, kind and channel.

    Edges have their weight. Raises `CannotOperate` where networkx is not installed.
    """
    networkx = _package("networkx", "a graph for networkx")
    made = networkx.Graph(aggregation=graph.aggregation, residual=graph.residual)
    for node, (group, channel) in enumerate(_nodes(graph)):
        made.add_node(node, layer=group.name, kind=group.kind, channel=channel)
    sources, targets, weights = graph.edge_list()
    made.add_weighted_edges_from(
        zip(sources.tolist(), targets.tolist(), weights.tolist(), strict=True)
    )
    return made


def _package(name: str, what: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        top = name.partition(".")[0]
        raise CannotOperate(f"{what} needs {top}, which is not installed: pip install {top}") from (
            error
        )


def _nodes(graph: ChannelGraph) -> Iterator[tuple[Group, int]]:
    """Every node's group and channel."""
    for group in graph.groups:
        for channel in group.channels or range(group.size):
            yield group, channel


# What the edges do not say.


def _text(graph: ChannelGraph) -> str:
    return json.dumps(
        {
            "format": _MARK,
            "version": _VERSION,
            "aggregation": graph.aggregation,
            "residual": graph.residual,
            "fold_norms": graph.fold_norms,
            "hubs": graph.hubs,
            "density": graph.density,
            "effective_density": graph.effective_density,
            "dead_channels": graph.dead_channels,
            "groups": [asdict(group) for group in graph.groups],
            "blocks": [[block.source, block.target, block.names] for block in graph.blocks],
            "edges": graph.edges,
        }
    )


def _graph(told: dict[str, Any], edges: _Edges) -> ChannelGraph:
    """A graph of its edges and of what they do not say; raises `ValueError` where they differ."""
    if told["format"] != _MARK or told["version"] != _VERSION:
        raise ValueError(f"it is of version {told['version']}; {_VERSION} is known")
    if edges.weights.size != told["edges"]:
        raise ValueError(f"it has {edges.weights.size} of {told['edges']} edges")
    for name, known in (("aggregation", Aggregation), ("residual", Residual)):
        _require_one_of(name, told[name], known)
    groups = tuple(_group(**one) for one in told["groups"])
    return ChannelGraph(
        groups=groups,
        blocks=tuple(_blocks(groups, told["blocks"], edges)),
        aggregation=told["aggregation"],
        residual=told["residual"],
        hubs=tuple(told["hubs"]),
        density=told["density"],
        effective_density=told["effective_density"],
        dead_channels=told["dead_channels"],
        fold_norms=bool(told["fold_norms"]),
    )


def _group(name: str, kind: Any, size: int, channels: list[int]) -> Group:
    if type(size) is not int or size < 1 or len(channels) not in (0, size):
        raise ValueError(f"the group {name!r} has {size} nodes")
    _require_one_of("kind", kind, Kind)
    return Group(str(name), kind, size, tuple(channels))


def _require_one_of(name: str, value: object, known: Any) -> None:
    if value not in get_args(known):
        raise ValueError(f"its {name} is {value!r}")


def _blocks(groups: tuple[Group, ...], told: list[Any], edges: _Edges) -> Iterator[Block]:
    """The edges by the two groups that they join."""
    sizes = np.array([group.size for group in groups])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    ends = np.concatenate([edges.sources, edges.targets])
    if ends.size and not 0 <= ends.min() <= ends.max() < starts[-1]:
        raise ValueError("an edge ends at a node that there is not")
    source, target = (
        np.searchsorted(starts, nodes, side="right") - 1 for nodes in (edges.sources, edges.targets)
    )
    keys = source * len(groups) + target
    order = np.argsort(keys, kind="stable")
    known = np.array([first * len(groups) + second for first, second, _ in told], dtype=np.int64)
    if not np.isin(keys, known).all():
        raise ValueError("an edge joins groups that no block does")
    low = np.searchsorted(keys[order], known, side="left")
    high = np.searchsorted(keys[order], known, side="right")
    for (first, second, names), start, end in zip(told, low, high, strict=True):
        own = order[start:end]
        places = edges.targets[own] - starts[second], edges.sources[own] - starts[first]
        shape = int(sizes[second]), int(sizes[first])
        block = sparse.csr_array((edges.weights[own], places), shape=shape)
        yield Block(first, second, stored([block]), tuple(names))


# One format each: how it is written, and how its text and edges are read.


def _npz(graph: ChannelGraph) -> bytes:
    matrix, held = graph.to_scipy(), io.BytesIO()
    text = np.frombuffer(_text(graph).encode(), dtype=np.uint8)
    np.savez(
        held,
        allow_pickle=False,
        format=np.array(b"csr"),
        shape=np.array(matrix.shape),
        data=matrix.data,
        indices=matrix.indices,
        indptr=matrix.indptr,
        _is_array=np.array(True),
        **{_KEY: text},
    )
    return held.getvalue()


def _read_npz(path: Path) -> tuple[str, _Edges]:
    if not zipfile.is_zipfile(path):  # numpy would advise to unpickle it
        raise ValueError("it is no zip file")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
        names = ("data", "indices", "indptr", "shape", _KEY)
        data, indices, indptr, shape, text = (found[name] for name in names)
    matrix = sparse.csr_array((data.astype(np.float64), indices, indptr), shape=tuple(shape))
    matrix.check_format(full_check=True)
    return text.tobytes().decode(), _Edges.of_matrix(matrix)


def _mtx(graph: ChannelGraph) -> bytes:
    text = _text(graph)
    lines = [f"{_MARK}: channels are numbered from 1 on, group after group"]
    lines += [f"{_KEY}:{text[at : at + _LINE]}" for at in range(0, len(text), _LINE)]
    held = io.BytesIO()
    scipy_io.mmwrite(held, graph.to_scipy(), comment="\n".join(lines), symmetry="symmetric")
    return held.getvalue()


def _read_mtx(path: Path) -> tuple[str, _Edges]:
    """Not by `scipy.io.mmread`, which a file that is cut makes end the process."""
    _require_last_line(path)
    parts = []
    with path.open(encoding="ascii") as file:
        if file.readline() != _SYMMETRIC:
            raise ValueError("it holds no symmetric matrix of real numbers")
        for line in file:
            if not line.startswith("%"):
                break
            parts += [line.rstrip("\n").partition(f"%{_KEY}:")[2]]
        first = file.readline()
        rows = itertools.chain([first], file) if first else _NONE
        found = np.loadtxt(rows, dtype=_MTX_ROW, ndmin=1)[: None if first else 0]
    return "".join(parts), _Edges(found["source"] - 1, found["target"] - 1, found["weight"])


def _require_last_line(path: Path) -> None:
    """Or the last number may be cut, and nobody sees it."""
    with path.open("rb") as file:
        file.seek(-1, io.SEEK_END)
        if file.read() != b"\n":
            raise ValueError("its last line is cut")


_GRAPHML = """<?xml version="1.0" encoding="utf-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
<key id="layer" for="node" attr.name="layer" attr.type="string"/>
<key id="kind" for="node" attr.name="kind" attr.type="string"/>
<key id="channel" for="node" attr.name="channel" attr.type="long"/>
<key id="weight" for="edge" attr.name="weight" attr.type="double"/>
<key id="{key}" for="graph" attr.name="{key}" attr.type="string"/>
<graph edgedefault="undirected">
<data key="{key}">{text}</data>
"""


def _graphml(graph: ChannelGraph) -> bytes:
    lines = [_GRAPHML.format(key=_KEY, text=escape(_text(graph)))]
    lines += [
        f'<node id="{node}"><data key="layer">{escape(group.name)}</data>'
        f'<data key="kind">{group.kind}</data><data key="channel">{channel}</data></node>\n'
        for node, (group, channel) in enumerate(_nodes(graph))
    ]
    lines += [
        f'<edge source="{source}" target="{target}"><data key="weight">{weight!r}</data></edge>\n'
        for source, target, weight in _rows(graph)
    ]
    return "".join([*lines, "</graph>\n</graphml>\n"]).encode()


def _read_graphml(path: Path) -> tuple[str, _Edges]:
    text, rows, space = (
        "",
        list[tuple[int, int, float]](),
        "{http://graphml.graphdrawing.org/xmlns}",
    )
    for _, element in ElementTree.iterparse(path):
        if element.tag == f"{space}edge":
            weight = float(element.findtext(f"{space}data", ""))
            rows.append((int(element.attrib["source"]), int(element.attrib["target"]), weight))
        elif element.tag == f"{space}data" and element.get("key") == _KEY:
            text = element.text or ""
        if element.tag in (f"{space}edge", f"{space}node"):
            element.clear()
    return text, _of_rows(rows)


def _csv(graph: ChannelGraph) -> bytes:
    held = io.StringIO(newline="")
    held.write(f"# {_text(graph)}\n")
    writer = csv.writer(held, lineterminator="\n")
    writer.writerow(_COLUMNS)
    names = [(group.name, channel) for group, channel in _nodes(graph)]
    writer.writerows(
        (source, target, *names[source], *names[target], repr(weight))
        for source, target, weight in _rows(graph)
    )
    return held.getvalue().encode()


def _read_csv(path: Path) -> tuple[str, _Edges]:
    _require_last_line(path)
    with path.open(encoding="utf-8", newline="") as file:
        text = file.readline().removeprefix("# ")
        reader = csv.reader(file)
        if tuple(next(reader, ())) != _COLUMNS:
            raise ValueError("its columns are others")
        rows = [(int(row[0]), int(row[1]), float(row[-1])) for row in reader]
    return text, _of_rows(rows)


def _parquet(graph: ChannelGraph) -> bytes:
    pyarrow, parquet = (_package(name, "Parquet") for name in ("pyarrow", "pyarrow.parquet"))
    sources, targets, weights = graph.edge_list()
    layers = np.repeat(np.arange(len(graph.groups)), [group.size for group in graph.groups])
    channels = np.array([channel for _, channel in _nodes(graph)])
    names = pyarrow.array([group.name for group in graph.groups])

    def layer(nodes: np.ndarray) -> Any:
        return pyarrow.DictionaryArray.from_arrays(layers[nodes].astype(np.int32), names)

    own = layer(sources), channels[sources], layer(targets), channels[targets]
    table = pyarrow.table(dict(zip(_COLUMNS, (sources, targets, *own, weights), strict=True)))
    held = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({_KEY: _text(graph)}), held)
    return held.getvalue()


def _read_parquet(path: Path) -> tuple[str, _Edges]:
    parquet = _package("pyarrow.parquet", "Parquet")
    found = parquet.read_table(path)
    columns = (found[name].to_numpy() for name in ("source", "target", "weight"))
    return found.schema.metadata[_KEY.encode()].decode(), _Edges(*columns)


def _rows(graph: ChannelGraph) -> Iterator[tuple[int, int, float]]:
    return zip(*(part.tolist() for part in graph.edge_list()), strict=True)


def _of_rows(rows: list[tuple[int, int, float]]) -> _Edges:
    sources, targets, weights = zip(*rows, strict=True) if rows else ((), (), ())
    return _Edges(
        np.array(sources, dtype=np.int64), np.array(targets, dtype=np.int64), np.array(weights)
    )


@dataclass(frozen=True)
class _Format:
    write: Callable[[ChannelGraph], bytes]
    read: Callable[[Path], tuple[str, _Edges]]


_FORMATS = {
    ".npz": _Format(_npz, _read_npz),
    ".mtx": _Format(_mtx, _read_mtx),
    ".graphml": _Format(_graphml, _read_graphml),
    ".csv": _Format(_csv, _read_csv),
    ".parquet": _Format(_parquet, _read_parquet),
}
SUFFIXES = tuple(_FORMATS)


def _format_of(path: Path) -> _Format:
    if path.suffix not in _FORMATS:
        near = did_you_mean(path.suffix, SUFFIXES)
        raise UsageError(f"{path}: a graph's file ends with {', '.join(SUFFIXES)}{near}")
    return _FORMATS[path.suffix]
