"""Runs every command of the README as a new user would, and compares what is shown with what is
printed.

    python3 tools/readme.py [README.md]

All `sh` blocks run in order, in one shell, in the current directory; after a `text` block the
lines that it shows (all but `...`) must stand in the output of the `sh` block before it, in order.
`python` blocks run one after the other in one program, in a directory of their own. Only the
standard library is used, since nothing is installed when this starts.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

_BLOCK = re.compile(r"^```(sh|text|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "--- end of block {} ---"


def main() -> None:
    readme = Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")
    blocks = _BLOCK.findall(readme.read_text())
    commands = [text for kind, text in blocks if kind == "sh"]
    programs = [text for kind, text in blocks if kind == "python"]
    printed = run_commands(commands, programs)
    compare(blocks, printed)
    print(f"{readme}: {len(commands)} blocks of commands, {len(programs)} of Python: as shown")


def run_commands(commands: list[str], programs: list[str]) -> list[str]:
    """Run the blocks in one bash; gives what each printed on stdout, which is shown too."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "readme.py"
        program.write_text("".join(programs))
        blocks = [*commands, f"(cd {folder} && python readme.py)\n"]
        script = "set -eu\n" + "".join(
            f"{block}echo '{_MARK.format(index)}'\n" for index, block in enumerate(blocks)
        )
        shell = subprocess.Popen(
            ["bash", "-c", script], stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
        )
        assert shell.stdout is not None
        lines = []
        for line in shell.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        if shell.wait() != 0:
            sys.exit(f"a command of the README failed with {shell.returncode}")
    text = "".join(lines)
    return re.split("|".join(_MARK.format(index) + "\n" for index in range(len(blocks))), text)


def compare(blocks: list[tuple[str, str]], printed: list[str]) -> None:
    """Every line that the README shows was printed, in that order."""
    index = -1
    for kind, text in blocks:
        index += kind == "sh"
        if kind != "text":
            continue
        rest = [line.rstrip() for line in printed[index].splitlines()]
        for shown in filter(lambda line: line != "...", text.splitlines()):
            if shown.rstrip() not in rest:
                sys.exit(f"the README shows a line that was not printed (or not there):\n{shown}")
            del rest[: rest.index(shown.rstrip()) + 1]


if __name__ == "__main__":
    main()
