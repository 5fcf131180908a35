"""Whether n2nfx can work on this machine, and the command that brings what is missing.

Nothing here imports what it examines: a package that is broken is a finding, not a failure.
"""

from collections.abc import Iterator

from n2nfx.doctor.data import find_data
from n2nfx.doctor.finding import Finding as Finding
from n2nfx.doctor.imports import try_imports
from n2nfx.doctor.machine import examine_machine
from n2nfx.doctor.packages import examine_packages, requirements


def examine() -> Iterator[Finding]:
    """Every finding: of the packages, the machine and the data."""
    needed = requirements()
    tried = try_imports([need.name for need in needed])
    yield from examine_packages(needed, tried)
    yield from examine_machine(tried)
    yield from find_data()
