# SPDX-License-Identifier: Apache-2.0
"""The network a step gets when it asks for none in particular.

The machine's, none, a bridge of ours, what CNI plugins make, or the sockets of an unprivileged process.

`open_networks` reads the configuration and gives a `Networks` (or a `Same`), from which a step acquires what
`Container.network` takes. `leases` are the namespaces: files below ROOT/net that belong to one process, with a note of what
has to be undone for each, so that `recover` gives back what a killed process held. `bridge`, `cni` and `usermode` are the ways
to connect one; `pool` keeps some ready.

What it promises: a namespace is used by one step only and given back after it, whatever became of the step. What it refuses:
to fall back to the machine's network where another was configured.

Three names to know: `open_networks`, `Networks`, `recover`.
"""

from __future__ import annotations

from .choose import mode_of, modes_here, open_networks
from .leases import recover
from .pool import Networks, Same

__all__ = ["Networks", "Same", "mode_of", "modes_here", "open_networks", "recover"]
