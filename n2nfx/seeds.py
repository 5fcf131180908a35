"""Seeds by name, so that nothing drawn depends on the order of drawing, the rank or the machine."""

import hashlib

import numpy as np

from n2nfx.errors import UsageError


def require_seed(seed: object) -> None:
    """Raise `UsageError` unless a seed is a whole number."""
    if type(seed) is not int:
        raise UsageError(f"a seed must be a whole number (int), not {seed!r}")


def derive(seed: int, *names: str) -> int:
    """A 64-bit seed for one named purpose; other names or another seed give an unrelated one."""
    # Escaped, no name holds the byte that joins them.
    text = b"\0".join(part.encode("unicode_escape") for part in (str(seed), *names))
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def generator(seed: int, *names: str) -> np.random.Generator:
    """A counter-based generator (Philox) for one named purpose, the same on every machine."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *names)))
