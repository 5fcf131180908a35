"""Effective weights of a network."""

from n2nfx.bind import with_acting_masks
from n2nfx.connectivity.channels import channel_map
from n2nfx.connectivity.effective import Effective, follow
from n2nfx.network import Network


def count_effective(network: Network) -> Effective:
    """The kept weights of a network that lie on a path from an input to an output.

    The masks are those at work in its module, or the network's own where none are. Raises
    `CannotOperate` for a module that was not traced.
    """
    network = with_acting_masks(network)
    found = channel_map(network)
    rows = [row for row in network.ledger() if row.size]
    count = len(network.layers)
    return follow(found, rows[:count], rows[count:], network.size)
