"""The table of sweeps by `tools/zoo.py`, and a picture of what they cost.

    python tools/zoo_report.py zoo.jsonl > docs/zoo.md         and docs/zoo.png beside it

Of a model that several files have, the last row counts. One of numbers alone adds what it found
to the row before it, and never hides that this had failed.
"""

import argparse
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from zoo import Row, read

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "zoo.png"
STEPS = ("trace_ms", "operate_ms", "save_ms", "load_ms")


def report(rows: Sequence[Row]) -> str:
    """The table of a sweep, as Markdown."""
    parts = [
        "# Models that n2nfx operates on\n",
        "Made by `python tools/zoo_report.py` from sweeps by `python tools/zoo.py`; each model is "
        "checked as `tools/zoo_check.py` says: traced in evaluation and training, in two ways, "
        "compared with the original at a batch size that was not traced (attention without torch's "
        "fast path, which rounds otherwise), its weights all reached, "
        "pruned to the exact budget, skips spliced, saved, loaded and the same again, its channels "
        "followed, and the outputs the same bits where skips are zero.\n",
        _summary(rows),
        _costs(rows),
        "## Failures\n",
        _list(f"`{r['name']}`, at {r['stage']}: {r['reason']}" for r in rows if not _fine(r)),
        "## Not prunable, or kept whole\n",
        _list(f"`{row['name']}`: {_told(note)}" for row in rows for note in row.get("notes", ())),
        "## Without skips\n",
        _list(f"`{row['name']}`: {_without_skips(row)}" for row in rows if _without_skips(row)),
        "## Pairs of layers that no skip joins\n",
        _list(f"{count:,}: {reason}" for reason, count in _refusals(rows).most_common(20)),
        "## Operations that are a node of their own in the channel graph\n",
        _list(f"{count:,} models: {name}" for name, count in _hubs(rows).most_common(40)),
        "## Every model\n",
        _table(rows),
    ]
    return "\n".join(parts) + "\n"


def _fine(row: Row) -> bool:
    return row["status"] == "ok"


def _list(lines: Iterable[str]) -> str:
    return ("\n".join(f"* {line}" for line in lines) or "None.") + "\n"


def _told(note: str) -> str:
    """A note without where this machine has its packages."""
    return re.sub(r"/\S*/site-packages/", "", note)


def _pairs(row: Row) -> tuple[int, int]:
    """Pairs that can have a skip, and all pairs."""
    legal, pairs = (sum(row.get(key, {}).values()) for key in ("legal", "pairs"))
    return legal, pairs


def _without_skips(row: Row) -> str:
    """Why a model has no skip; nothing where it has one."""
    if not _fine(row) or _pairs(row)[0]:
        return ""
    spliced = row.get("spliced")
    return spliced if isinstance(spliced, str) else f"it has {row['layers']} layers"


def _summary(rows: Sequence[Row]) -> str:
    fine = [row for row in rows if _fine(row)]
    families = {row["family"] for row in rows}
    whole = families - {row["family"] for row in rows if not _fine(row)}
    compared = Counter(row["compared"] for row in fine)
    legal, pairs = (sum(column) for column in zip(*map(_pairs, rows), strict=True))
    twins = sum(row.get("twins", 0) for row in rows)
    saved = sum("load_ms" in row for row in fine)
    costly = compared["shapes"]
    in_shapes = (
        f"{costly:,} in shapes, because one forward of theirs costs too much here, "
        if costly
        else ""
    )
    return (
        f"**{len(fine):,} of {len(rows):,} models pass, in {len(whole)} of {len(families)} "
        f"families.** {compared['numbers']:,} were compared in numbers, to the last bit, "
        f"{in_shapes}and {compared['shapes, without data']:,} in shapes and with weights that have "
        "no data, "
        f"because what is done to them takes more than the 24 GB of memory here; these were traced "
        f"and their pairs counted. The other {saved:,} were also pruned, spliced, saved and loaded "
        f"again.\n\n"
        f"{sum(row.get('layers', 0) for row in rows):,} layers; {legal:,} of {pairs:,} pairs of "
        f"layers 2 or 3 apart can have a skip ({legal / max(pairs, 1):.1%}), and {twins:,} more "
        f"would have the very branch of one of these.\n"
    )


def _costs(rows: Sequence[Row]) -> str:
    """Processor seconds of every step, as medians and the most."""
    lines = [
        "| processor seconds | models | median | 95% are below | most |",
        "|---|---|---|---|---|",
    ]
    for what, keys in (
        ("tracing", STEPS[:1]),
        ("pruning and skips", STEPS[1:2]),
        ("saving", STEPS[2:3]),
        ("building again and loading", STEPS[3:]),
        ("these together", STEPS),
        ("channel graph", ("graph_ms",)),
    ):
        found = _seconds(rows, keys)
        figures = (statistics.median(found), float(np.quantile(found, 0.95)), max(found))
        lines.append(
            f"| {what} | {len(found):,} | " + " | ".join(f"{f:.2f}" for f in figures) + " |"
        )
    return "\n".join(lines) + "\n\n![What tracing and the whole pipeline cost](zoo.png)\n"


def _seconds(rows: Sequence[Row], keys: Sequence[str]) -> list[float]:
    return [sum(row[key] for key in keys) / 1000 for row in rows if all(k in row for k in keys)]


def _refusals(rows: Sequence[Row]) -> Counter[str]:
    reasons: Counter[str] = Counter()
    for row in rows:
        for reason, count in row.get("refused", {}).items():
            reasons[_general(reason)] += count
    return reasons


def _general(reason: str) -> str:
    """A reason without what it says of one pair only."""
    words = [("N" if any(c.isdigit() for c in w) or "." in w else w) for w in reason.split()]
    return " ".join(words)


def _hubs(rows: Sequence[Row]) -> Counter[str]:
    """How many models have a hub of each operation."""
    return Counter(
        name for row in rows for name in {_operation(hub) for hub in row.get("hubs", ())}
    )


def _operation(hub: str) -> str:
    """An operation without the place where it stands, a module or branch without its own name."""
    name, inside, _ = hub.partition(" in ")
    return name if inside else "a module or branch" if "." in name else name


def _table(rows: Sequence[Row]) -> str:
    head = (
        "| family | model | layers | weights | graphs | any size | compared | eval | train "
        "| skips (of pairs) | hubs | trace ms | pipeline ms | status |\n" + "|---" * 14 + "|"
    )
    return "\n".join([head, *(_line(row) for row in sorted(rows, key=_place))])


def _place(row: Row) -> tuple[str, int, str]:
    return row["family"], row.get("weights", 0), row["name"]


def _line(row: Row) -> str:
    legal, pairs = _pairs(row)
    whole = _seconds([row], STEPS)
    cells = [
        row["family"],
        row["name"].partition(":")[2],
        row.get("layers", ""),
        f"{row['weights']:,}" if "weights" in row else "",
        row.get("graphs", ""),
        "" if "any_size" not in row else "yes" if row["any_size"] else "no",
        _compared(row),
        row.get("eval", ""),
        row.get("train", ""),
        f"{legal} ({pairs})",
        len(row["hubs"]) if "hubs" in row else "",
        row.get("trace_ms", ""),
        round(1000 * whole[0]) if whole else "",
        row["status"],
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _compared(row: Row) -> str:
    """What was compared, and of how many examples and where, if the row says it of numbers."""
    told = row.get("compared", "")
    if told == "numbers":
        told += f" of {row['batch']}" if "batch" in row else ""
        told += f" on {row['device']}" if "device" in row else ""
    return told


# The picture


def draw(rows: Sequence[Row], path: Path) -> None:
    """What tracing costs by a graph's nodes, and the pipeline by a model's weights."""
    matplotlib.use("agg")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.6, 3.6), dpi=110, layout="constrained")
    _scatter(left, rows, "nodes", STEPS[:1], "tracing")
    _scatter(right, rows, "weights", STEPS, "the whole pipeline")
    figure.savefig(path)


def _scatter(axis: Axes, rows: Sequence[Row], by: str, keys: Sequence[str], title: str) -> None:
    """Processor seconds of some steps by a size, and the slope of the line through all of them."""
    some = [row for row in rows if row.get(by) and all(key in row for key in keys)]
    sizes, seconds = np.array([row[by] for row in some], float), np.array(_seconds(some, keys))
    slope, start = np.polyfit(np.log(sizes), np.log(seconds), 1)
    ends = np.array([sizes.min(), sizes.max()])
    axis.loglog(sizes, seconds, ".", markersize=3, alpha=0.5)
    axis.loglog(ends, np.exp(start) * ends**slope, "k-", linewidth=1)
    axis.set_title(f"{title}: seconds grow as {by}^{slope:.2f}", fontsize=9)
    axis.set_xlabel(f"{by} of the model", fontsize=9)
    axis.set_ylabel("processor seconds", fontsize=9)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="sweeps by tools/zoo.py")
    rows = joined(row for file in parser.parse_args().files for row in read(file))
    draw(rows, PICTURE)
    print(report(rows), end="")


def joined(rows: Iterable[Row]) -> list[Row]:
    """One row for each model."""
    found: dict[str, Row] = {}
    for row in rows:
        before = found.get(row["name"])
        if before is not None and row.get("only") == "numbers":
            row = {**before, **row} if _fine(before) else before
        found[row["name"]] = row
    return list(found.values())


if __name__ == "__main__":
    main()
