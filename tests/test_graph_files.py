"""Channel graphs in files: read back equal, read by others, and refused when they are damaged."""

import csv
import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import Model
from scipy import sparse
from torch import nn

import n2nfx
from n2nfx.connectivity.graph import Block, ChannelGraph, Group, layered
from n2nfx.connectivity.graph_files import SUFFIXES
from n2nfx.errors import CannotOperate, DamagedFile, UsageError
from n2nfx.passes import N2NSkip, RandomPruning


def same(one: ChannelGraph, other: ChannelGraph) -> bool:
    """Whether all of two graphs is equal, to the last bit."""

    def plain(graph: ChannelGraph) -> tuple[Any, ...]:
        return (
            *(graph.groups, graph.aggregation, graph.residual, graph.fold_norms, graph.hubs),
            *(graph.density, graph.effective_density, graph.dead_channels),
            [(block.source, block.target, block.names) for block in graph.blocks],
        )

    blocks = zip(one.blocks, other.blocks, strict=True)
    return plain(one) == plain(other) and all(
        type(a.weights) is type(b.weights) and (filled(a) == filled(b)).all() for a, b in blocks
    )


def filled(block: Block) -> np.ndarray:
    weights = block.weights
    return weights if isinstance(weights, np.ndarray) else weights.toarray()


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    """One with a hub, a gate, edges inside a group, skips, and an odd name."""
    model = Model(
        lambda m, x: m.head(nn.functional.glu(m.third(m.second(torch.relu(m.first(x)))), 1)
                            .softmax(1).cumsum(1).mean((2, 3))),
        first=nn.Conv2d(3, 8, 3, padding=1), second=nn.Conv2d(8, 8, 3, padding=1),
        third=nn.Conv2d(8, 12, 1), head=nn.Linear(6, 5),
    )  # fmt: skip
    passes = [RandomPruning(density=0.3), N2NSkip(ratio=0.5, hops=(2,))]
    network = n2nfx.Pipeline(passes)(n2nfx.trace(model, torch.ones(2, 3, 6, 6)), seed=0).network
    assert network.skips
    found = n2nfx.channel_graph(network)
    groups = (Group('x <"&,é', "input", 3), *found.groups[1:])
    assert found.hubs
    assert any(block.source == block.target for block in found.blocks)
    return ChannelGraph(
        groups, found.blocks, "l2", "merge", found.hubs, 0.25, found.effective_density, 3, True
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_graph_is_read_back_equal(graph: ChannelGraph, suffix: str, tmp_path: Path) -> None:
    path = graph.save(tmp_path / f"graph{suffix}")
    assert path == tmp_path / f"graph{suffix}"
    assert same(n2nfx.load_graph(str(path)), graph)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_the_same_for_the_same_graph(
    graph: ChannelGraph, suffix: str, tmp_path: Path
) -> None:
    one, other = (graph.save(tmp_path / f"{name}{suffix}") for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    fill=st.sampled_from([0.0, 0.2, 1.0]),
)
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_graph_is_read_back_with_all_its_edges(
    suffix: str, sizes: list[int], seed: int, fill: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also one without edges, with blocks and rows that have none, and with tiny weights."""
    random = np.random.default_rng(seed)
    blocks = []
    for target in range(1, len(sizes)):
        for source in range(target):
            shape = sizes[target], sizes[source]
            kept = random.random(shape) < fill
            blocks.append((source, target, kept * random.lognormal(0, 20, shape)))
    graph = layered(sizes, blocks)
    read = n2nfx.load_graph(graph.save(tmp_path_factory.getbasetemp() / f"any{suffix}"))
    assert read.groups == graph.groups
    assert (read.to_scipy().toarray() == graph.to_scipy().toarray()).all()
    assert len(read.blocks) == len(graph.blocks)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_channels_that_are_left_of_a_layer_keep_their_numbers(suffix: str, tmp_path: Path) -> None:
    groups = Group("x", "input", 2), Group("fc", "layer", 2, (1, 4))
    graph = ChannelGraph(groups, (Block(0, 1, np.ones((2, 2)), ("fc.weight",)),))
    assert same(n2nfx.load_graph(graph.save(tmp_path / f"g{suffix}")), graph)
    assert [graph.to_networkx().nodes[node]["channel"] for node in range(4)] == [0, 1, 1, 4]


def test_a_graph_for_networkx_has_all_edges_and_names(graph: ChannelGraph) -> None:
    made = graph.to_networkx()
    assert (made.number_of_nodes(), made.number_of_edges()) == (graph.n, graph.edges)
    weights = networkx.to_scipy_sparse_array(made, nodelist=range(graph.n), weight="weight")
    assert (weights.toarray() == graph.to_scipy().toarray()).all()
    assert made.nodes[4] == {"layer": "first", "kind": "layer", "channel": 1}
    assert made.graph == {"aggregation": "l2", "residual": "merge"}


# Others read the files.


def test_scipy_reads_npz_and_matrix_market(graph: ChannelGraph, tmp_path: Path) -> None:
    npz = sparse.load_npz(graph.save(tmp_path / "g.npz"))
    mtx = scipy.io.mmread(graph.save(tmp_path / "g.mtx"))
    for read in (npz, mtx):
        assert (sparse.csr_array(read).toarray() == graph.to_scipy().toarray()).all()


def test_networkx_reads_graphml(graph: ChannelGraph, tmp_path: Path) -> None:
    read = networkx.read_graphml(graph.save(tmp_path / "g.graphml"), node_type=int)
    mine = graph.to_networkx()
    assert dict(read.nodes(data=True)) == dict(mine.nodes(data=True))
    assert {frozenset(ends): weight for *ends, weight in read.edges(data="weight")} == {
        frozenset(ends): weight for *ends, weight in mine.edges(data="weight")
    }


def test_lists_of_edges_have_the_names_of_layers_and_channels(
    graph: ChannelGraph, tmp_path: Path
) -> None:
    import pyarrow.parquet

    text = graph.save(tmp_path / "g.csv").read_text(encoding="utf-8").partition("\n")[2]
    rows = list(csv.DictReader(io.StringIO(text)))
    table = pyarrow.parquet.read_table(graph.save(tmp_path / "g.parquet")).to_pylist()
    assert len(rows) == len(table) == graph.edges
    for row, other in zip(rows, table, strict=True):
        assert {name: str(value) for name, value in other.items()} == dict(row)
    names = [(group.name, str(channel)) for group in graph.groups for channel in range(group.size)]
    weights = graph.to_scipy()
    for row in rows:
        source, target = int(row["source"]), int(row["target"])
        assert (row["source_layer"], row["source_channel"]) == names[source]
        assert (row["target_layer"], row["target_channel"]) == names[target]
        assert float(row["weight"]) == weights[source, target]


# Bad input.


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_not_there_is_told(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedFile, match=f"there is no file .*gone{suffix}"):
        n2nfx.load_graph(tmp_path / f"gone{suffix}")
    with pytest.raises(DamagedFile, match="there is no file"):
        n2nfx.load_graph(tmp_path.with_suffix(suffix))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_random_bytes_are_no_graph(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"g{suffix}"
    random = np.random.default_rng(0)
    for size in (0, 1, 100, 10_000):
        path.write_bytes(random.bytes(size))
        with pytest.raises(DamagedFile, match=f"g{suffix}: is damaged, or no channel") as found:
            n2nfx.load_graph(path)
        assert "pickle" not in str(found.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_cut_anywhere_is_refused(
    graph: ChannelGraph, suffix: str, tmp_path: Path
) -> None:
    path = graph.save(tmp_path / f"g{suffix}")
    whole = path.read_bytes()
    for part in range(1, 40):
        path.write_bytes(whole[: len(whole) * part // 40])
        with pytest.raises(DamagedFile, match=f"g{suffix}: is damaged"):
            n2nfx.load_graph(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bytes_that_changed_raise_no_other_error(
    graph: ChannelGraph, suffix: str, tmp_path: Path
) -> None:
    """A digit may become another, and nobody can tell."""
    path = graph.save(tmp_path / f"g{suffix}")
    whole, random = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        changed = bytearray(whole)
        for place in random.integers(len(whole), size=3):
            changed[place] = random.integers(256)
        path.write_bytes(changed)
        try:
            n2nfx.load_graph(path)
        except DamagedFile:
            refused += 1
    assert refused > 50


def test_nothing_in_a_file_is_unpickled(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (ran,)

    path = tmp_path / "g.npz"
    layered([2, 2], [(0, 1, np.ones((2, 2)))]).save(path)
    with np.load(path) as found:
        parts = dict(found)
    for name in ("data", "indices", "indptr", "shape", "n2nfx"):
        evil = np.empty(1, dtype=object)
        evil[0] = Evil()
        np.savez(path, **{**parts, name: evil})
        with pytest.raises(DamagedFile):
            n2nfx.load_graph(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DamagedFile):
        n2nfx.load_graph(path)
    assert not ran.exists()


def test_a_matrix_of_somebody_else_is_no_graph(tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    sparse.save_npz(path, sparse.csr_array(np.eye(3)))
    with pytest.raises(DamagedFile, match=r"g\.npz"):
        n2nfx.load_graph(path)
    scipy.io.mmwrite(tmp_path / "g.mtx", sparse.csr_array(np.eye(3)))
    with pytest.raises(DamagedFile, match=r"g\.mtx"):
        n2nfx.load_graph(tmp_path / "g.mtx")


def changed_text(path: Path, change: Any) -> None:
    """Change what a CSV file says besides its edges."""
    first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    told = json.loads(first.removeprefix("# "))
    change(told)
    path.write_text(f"# {json.dumps(told)}\n{rest}", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda told: told.update(version=3), "version 3"),
        (lambda told: told.update(format="another"), "damaged"),
        (lambda told: told.update(edges=5), "4 of 5 edges"),
        (lambda told: told["groups"].pop(), "an edge ends at a node"),
        (lambda told: told["groups"][0].update(size=10**12), "damaged"),
        (lambda told: told["groups"][0].update(size=-1), "has -1 nodes"),
        (lambda told: told["groups"][0].update(size=1.5), "nodes"),
        (lambda told: told["groups"][0].update(channels=[1]), "nodes"),
        (lambda told: told["groups"][0].update(kind="unknown"), "kind"),
        (lambda told: told.update(aggregation="signed"), "aggregation"),
        (lambda told: told.update(blocks=[]), "an edge joins groups that no block does"),
        (lambda told: told["blocks"].append([0, 7, []]), "damaged"),
        (lambda told: told["blocks"].append([0, 1, []]), "damaged"),
    ],
)
def test_what_the_text_says_must_agree_with_the_edges(
    change: Any, told: str, tmp_path: Path
) -> None:
    path = layered([2, 2], [(0, 1, np.ones((2, 2)))]).save(tmp_path / "g.csv")
    changed_text(path, change)
    with pytest.raises(DamagedFile, match=told):
        n2nfx.load_graph(path)


@pytest.mark.parametrize("weight", ["nan", "inf", "-1.0", "one"])
def test_weights_that_no_graph_can_have_are_refused(weight: str, tmp_path: Path) -> None:
    path = layered([2, 2], [(0, 1, np.ones((2, 2)))]).save(tmp_path / "g.csv")
    path.write_text(path.read_text(encoding="utf-8").replace("1.0\n", f"{weight}\n"))
    with pytest.raises(DamagedFile, match=r"g\.csv"):
        n2nfx.load_graph(path)


def test_an_unknown_ending_is_told(graph: ChannelGraph, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean \.graphml"):
        graph.save(tmp_path / "g.graphm")
    with pytest.raises(UsageError, match=r"a graph's file ends with \.npz"):
        n2nfx.load_graph(tmp_path / "g")


def test_what_is_no_path_is_told(graph: ChannelGraph) -> None:
    wrong: Any = None
    with pytest.raises(UsageError, match="None is no path"):
        graph.save(wrong)
    with pytest.raises(UsageError, match="None is no path"):
        n2nfx.load_graph(wrong)


def test_a_file_is_replaced_whole_or_not_at_all(
    graph: ChannelGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = layered([2, 2], [(0, 1, np.ones((2, 2)))]).save(tmp_path / "g.npz")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("n2nfx.atomic.os.fsync", fail)
    with pytest.raises(CannotOperate, match="No space left"):
        graph.save(path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["g.npz"]


@pytest.mark.parametrize(
    ("package", "work"),
    [
        ("networkx", lambda graph, folder: graph.to_networkx()),
        ("pyarrow", lambda graph, folder: graph.save(folder / "g.parquet")),
        ("pyarrow", lambda graph, folder: n2nfx.load_graph(folder / "there.parquet")),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_command(
    package: str, work: Any, graph: ChannelGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph.save(tmp_path / "there.parquet")
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CannotOperate, match=f"pip install {package}"):
        work(graph, tmp_path)
