"""The pass library: import it as n2nfx.passes."""

if __name__ != "n2nfx.passes":
    raise ImportError(f"import n2nfx.passes, not {__name__}: this folder is installed inside n2nfx")

from n2nfx.passes.expander import Expander
from n2nfx.passes.grasp import GraSP
from n2nfx.passes.iterative_snip import IterativeSNIP
from n2nfx.passes.magnitude import Magnitude
from n2nfx.passes.n2nskip import N2NSkip
from n2nfx.passes.random_pruning import RandomPruning
from n2nfx.passes.reinit import Reinit
from n2nfx.passes.resskip import ResSkip
from n2nfx.passes.shuffle import Shuffle
from n2nfx.passes.small_input_stem import SmallInputStem
from n2nfx.passes.snip import SNIP
from n2nfx.passes.synflow import SynFlow

__all__ = [
    "SNIP",
    "Expander",
    "GraSP",
    "IterativeSNIP",
    "Magnitude",
    "N2NSkip",
    "RandomPruning",
    "Reinit",
    "ResSkip",
    "Shuffle",
    "SmallInputStem",
    "SynFlow",
]
