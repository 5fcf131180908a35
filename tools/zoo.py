"""Sweeps models of the zoos, each in a process of its own, into a file with a line for each.

    python tools/zoo.py --families --out zoo.jsonl             one model of every family
    python tools/zoo.py --names 'timm:resnet*' --out zoo.jsonl all that a pattern names
    python tools/zoo.py --report zoo.jsonl > docs/zoo.md       the table

A sweep goes on where it was stopped: names that the file has are not run again, except with
--again those that failed.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FAMILIES = ROOT / "tests" / "zoo" / "families.txt"

Row = dict[str, Any]


# A sweep


@dataclass(frozen=True)
class Effort:
    """How far the check of one model goes."""

    limit: float  # seconds
    most: float  # multiply-adds of a forward whose numbers are compared
    gradients: bool


def sweep(names: Sequence[str], out: Path, jobs: int, effort: Effort, again: bool) -> None:
    """Check every name that the file has no row for, `jobs` at a time."""
    import_all()
    done = {row["name"]: row for row in read(out)}
    left = [n for n in names if n not in done or (again and done[n]["status"] != "ok")]
    print(f"{len(names)} names, {len(left)} to run", file=sys.stderr)
    with out.open("a") as file, ThreadPoolExecutor(jobs) as pool:
        for number, row in enumerate(pool.map(lambda name: run(name, effort), left), 1):
            file.write(json.dumps(row) + "\n")
            file.flush()
            told = row.get("reason", "")
            print(f"{number}/{len(left)} {row['name']} {row['status']} {told}", file=sys.stderr)


def import_all() -> None:
    """Import once what every model needs, so that a process starts with it."""
    import timm  # noqa: F401
    import torch
    import torchvision  # noqa: F401
    import zoo_check

    torch.set_num_threads(1)
    zoo_check.warm_up()


def run(name: str, effort: Effort) -> Row:
    """The row of one model, from a process that ends with it or is ended at the time limit."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(name, effort, sender))
    start = time.perf_counter()
    process.start()
    sender.close()
    row: Row = {"name": name, "family": _family(name), "status": "failed", "stage": "process"}
    try:
        if receiver.poll(effort.limit):
            row = receiver.recv()
        else:
            row["reason"] = f"it takes more than {effort.limit:.0f} seconds"
    except EOFError:
        row["reason"] = "the process died, for want of memory perhaps"
    if process.is_alive():
        process.join(1)
        process.kill()
    process.join()
    return {**row, "seconds": round(time.perf_counter() - start, 1)}


def _work(name: str, effort: Effort, sender: Any) -> None:
    import zoo_check

    sender.send(zoo_check.check(name, effort.most, effort.gradients))


def _family(name: str) -> str:
    import zoo_check

    return zoo_check.family(name)


def read(path: Path) -> list[Row]:
    """The rows of a file, the last of each name."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return list({row["name"]: row for row in rows}.values())


def expand(patterns: Iterable[str]) -> list[str]:
    """The names that patterns mean, or that files list, one a line."""
    from n2nfx import models

    found: list[str] = []
    for pattern in patterns:
        path = Path(pattern)
        found += path.read_text().split() if path.is_file() else models.names(pattern)
    return list(dict.fromkeys(found))


# The report


def report(rows: Sequence[Row]) -> str:
    """The table of a sweep, as Markdown."""
    failed = [row for row in rows if row["status"] != "ok"]
    parts = [
        "# Models that n2nfx operates on\n",
        "Made by `python tools/zoo.py --report`, from a sweep by the same tool; each model is "
        "checked as `tools/zoo_check.py` says: traced in evaluation and training, compared with "
        "the original at a batch size that was not traced, its weights all reached, pruned to the "
        "exact budget, skips spliced, and the outputs the same bits where these are zero.\n",
        _summary(rows),
        "## Failures\n",
        "\n".join(f"* `{row['name']}`, at {row['stage']}: {row['reason']}" for row in failed)
        or "None.",
        "\n## Not prunable, or kept whole\n",
        "\n".join(f"* `{row['name']}`: {note}" for row in rows for note in row.get("notes", ()))
        or "None.",
        "\n## Without skips\n",
        "\n".join(f"* `{row['name']}`: {row['spliced']}" for row in rows if _without_skips(row))
        or "None.",
        "\n## Pairs of layers that no skip joins\n",
        _refusals(rows),
        "\n## Every model\n",
        _table(rows),
    ]
    return "\n".join(parts) + "\n"


def _without_skips(row: Row) -> bool:
    return isinstance(row.get("spliced"), str)  # then it is the reason


def _summary(rows: Sequence[Row]) -> str:
    fine = [row for row in rows if row["status"] == "ok"]
    families = {row["family"] for row in rows}
    whole = [f for f in families if all(r["status"] == "ok" for r in rows if r["family"] == f)]
    legal, pairs = (
        sum(sum(row.get(key, {}).values()) for row in rows) for key in ("legal", "pairs")
    )
    twins = sum(row.get("twins", 0) for row in rows)
    traced = [row["trace_ms"] for row in rows if "trace_ms" in row]
    exact = sum(row.get("compared") == "numbers" for row in fine)
    return (
        f"**{len(fine)} of {len(rows)} models pass, in {len(whole)} of {len(families)} families.** "
        f"{exact} were compared in numbers, to the last bit, the others in shapes, because one "
        f"forward of theirs costs too much. {sum(row.get('layers', 0) for row in rows):,} layers; "
        f"{legal:,} of {pairs:,} pairs of layers 2 or 3 apart can have a skip "
        f"({legal / max(pairs, 1):.1%}), and {twins:,} more would have the very branch of one of "
        f"these. Tracing takes {statistics.median(traced):.0f} ms in the "
        f"median, on one core.\n"
    )


def _refusals(rows: Sequence[Row]) -> str:
    reasons: Counter[str] = Counter()
    for row in rows:
        for reason, count in row.get("refused", {}).items():
            reasons[_general(reason)] += count
    lines = [f"* {count:,}: {reason}" for reason, count in reasons.most_common(20)]
    return "\n".join(lines) or "None."


def _general(reason: str) -> str:
    """A reason without what it says of one pair only."""
    words = [("N" if any(c.isdigit() for c in w) or "." in w else w) for w in reason.split()]
    return " ".join(words)


def _table(rows: Sequence[Row]) -> str:
    head = (
        "| family | model | layers | weights | graphs | any size | compared | eval | train "
        "| skips (of pairs) | trace ms | status |\n" + "|---" * 12 + "|"
    )
    return "\n".join([head, *(_line(row) for row in sorted(rows, key=lambda r: r["family"]))])


def _line(row: Mapping[str, Any]) -> str:
    legal, pairs = (sum(row.get(key, {}).values()) for key in ("legal", "pairs"))
    cells = [
        row["family"],
        row["name"].partition(":")[2],
        row.get("layers", ""),
        f"{row['weights']:,}" if "weights" in row else "",
        row.get("graphs", ""),
        "" if "any_size" not in row else "yes" if row["any_size"] else "no",
        row.get("compared", ""),
        row.get("eval", ""),
        row.get("train", ""),
        f"{legal} ({pairs})",
        row.get("trace_ms", ""),
        row["status"],
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--families", action="store_true", help="one model of every family")
    parser.add_argument("--names", nargs="*", default=[], help="patterns, or files of names")
    parser.add_argument("--out", type=Path, default=Path("zoo.jsonl"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300, help="seconds for one model")
    parser.add_argument(
        "--most", type=float, default=2e10, help="multiply-adds of a forward compared in numbers"
    )
    parser.add_argument("--no-gradients", action="store_true", help="compare no backward")
    parser.add_argument("--again", action="store_true", help="run again what failed")
    parser.add_argument("--report", type=Path, help="print the table of a file, and run nothing")
    asked = parser.parse_args()
    if asked.report:
        print(report(read(asked.report)), end="")
        return
    patterns = [*asked.names, *([str(FAMILIES)] if asked.families else [])]
    effort = Effort(asked.limit, asked.most, not asked.no_gradients)
    sweep(expand(patterns), asked.out, asked.jobs, effort, asked.again)


if __name__ == "__main__":
    main()
