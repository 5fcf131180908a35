"""What can go wrong for a person, and the exit code that each kind has on the command line."""

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Real


class N2nfxError(Exception):
    """An error with a message for a person: what was wrong, where, and the nearest right thing."""

    exit_code = 1


class UsageError(N2nfxError, ValueError):
    """An argument that no job could take: a density above 1, an unknown option or pass."""

    exit_code = 2


class CannotOperate(N2nfxError):
    """A model or job that cannot be operated on: the reason, and what would work."""

    exit_code = 3


class CannotWrite(CannotOperate):
    """A file that cannot be written (a full disk, no permission): it will do, once it can be."""


class DamagedFile(N2nfxError):
    """An input file that is missing, damaged, or not what it says it is."""

    exit_code = 4


class RunFailed(N2nfxError):
    """Runs of a recipe that failed; the others were run all the same."""

    exit_code = 5


def require_kind(value: object, kind: type | tuple[type, ...], wanted: str) -> None:
    """Raise `UsageError` unless a value is of a kind; `wanted` is a sentence that says which."""
    if not isinstance(value, kind):
        name = type(value).__name__
        found = f"the class {value.__name__}" if isinstance(value, type) else name
        raise UsageError(f"{wanted}, not {found}")


def kinds(value: object) -> str:
    """A value's type, with those of the elements of a tuple or a list: `(Net, int)`."""
    if not isinstance(value, tuple | list):
        return type(value).__name__
    inner = ", ".join(type(part).__name__ for part in value)
    return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"


def require_number(name: str, value: object) -> None:
    """Raise `UsageError` unless a value is a number, which True is not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UsageError(f"{name} must be a number, not {value!r}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known words as the end of a sentence, or nothing where none is near.

    Whether letters are large or small makes no distance.
    """
    spelt = {one.lower(): one for one in known}
    near = [spelt[one] for one in get_close_matches(word.lower(), spelt, n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def first_line(error: object) -> str:
    """What an error or a warning says, its first line only."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""


def described(error: BaseException) -> str:
    """An error's type, and the first line of what it says."""
    return f"{type(error).__name__}: {first_line(error)}".rstrip(": ")
