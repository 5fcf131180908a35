"""Sweeps models of the zoos, each in a process of its own, into a file with a line for each.

    python tools/zoo.py --families --out zoo.jsonl             one model of every family
    python tools/zoo.py --names 'timm:resnet*' --out zoo.jsonl all that a pattern names

A sweep goes on where it was stopped: names that the file has are not run again, except with
--again those that failed. `tools/zoo_report.py` makes a table of such files.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it imports torch
    from zoo_check import Effort

ROOT = Path(__file__).parent.parent
FAMILIES = ROOT / "tests" / "zoo" / "families.txt"

Row = dict[str, Any]

_FORKING = Lock()  # packages' hooks of fork refuse another one beside it


# A sweep


def sweep(
    names: Sequence[str], out: Path, jobs: int, limit: float, effort: "Effort", again: bool
) -> None:
    """Check every name that the file has no row for, `jobs` at a time."""
    import_all()
    done = {row["name"]: row for row in read(out)}
    left = [n for n in names if n not in done or (again and done[n]["status"] != "ok")]
    print(f"{len(names)} names, {len(left)} to run", file=sys.stderr)
    with out.open("a") as file, ThreadPoolExecutor(jobs) as pool:
        runs = [pool.submit(run, name, limit, effort) for name in left]
        for number, ended in enumerate(as_completed(runs), 1):
            row = ended.result()
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


def run(name: str, limit: float, effort: "Effort") -> Row:
    """The row of one model, from a process that ends with it or after `limit` seconds."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(name, effort, sender))
    start = time.perf_counter()
    with _FORKING:
        process.start()
    sender.close()
    row: Row = {"name": name, "family": _family(name), "status": "failed", "stage": "process"}
    try:
        if receiver.poll(limit):
            row = receiver.recv()
        else:
            row["reason"] = f"it takes more than {limit:.0f} seconds"
    except EOFError:
        row["reason"] = "the process died, for want of memory perhaps"
    if process.is_alive():
        process.join(1)
        process.kill()
    process.join()
    return {**row, "seconds": round(time.perf_counter() - start, 1)}


def _work(name: str, effort: "Effort", sender: Any) -> None:
    import zoo_check

    sender.send(zoo_check.check(name, effort))


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
    parser.add_argument(
        "--only",
        choices=("blank", "numbers"),
        help="what can be said of weights without data, for what does not fit; or numbers compared",
    )
    parser.add_argument("--device", default="cpu", help="where numbers alone are compared")
    parser.add_argument("--batch", type=int, default=3, choices=(2, 3), help="examples compared")
    parser.add_argument("--again", action="store_true", help="run again what failed")
    asked = parser.parse_args()
    patterns = [*asked.names, *([str(FAMILIES)] if asked.families else [])]
    if asked.device != "cpu" and asked.only != "numbers":
        parser.error("--device is for --only numbers")
    from zoo_check import Effort

    effort = Effort(asked.most, not asked.no_gradients, asked.only, asked.device, batch=asked.batch)
    sweep(expand(patterns), asked.out, asked.jobs, asked.limit, effort, asked.again)


if __name__ == "__main__":
    main()
