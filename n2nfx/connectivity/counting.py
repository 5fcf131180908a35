"""Effective weights of a network."""

from n2nfx.connectivity.channels import channel_map
from n2nfx.connectivity.effective import Effective, follow
from n2nfx.network import Network


def count_effective(network: Network) -> Effective:
    """The kept weights of a network that lie on a path from an input to an output.

    The masks are the network's own. Raises `CannotOperate` for a module that was not traced.
    """
    found = channel_map(network)
    rows = [row for row in network.ledger() if row.size]
    count = len(network.layers)
    return follow(found, rows[:count], rows[count:], network.size)
