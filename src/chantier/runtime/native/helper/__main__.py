# SPDX-License-Identifier: Apache-2.0
"""Start the helper: python -I -S -B PATH/TO/__main__.py, with the engine's socket as descriptor 3."""

from __future__ import annotations

import os
import sys
from types import ModuleType

_HERE = os.path.dirname(os.path.abspath(__file__))
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(_HERE)))


def find_package() -> None:
    """Alone we know nothing of the package, and its own directory is no place to import from.

    Packages on the way to what we need stand empty: each page of memory that they would fill is one more for every fork to copy.
    """
    sys.path[0] = os.path.dirname(_ROOT)
    for name in ("chantier", "chantier.kernel", "chantier.runtime", "chantier.runtime.native"):
        empty = ModuleType(name)
        empty.__path__ = [os.path.join(_ROOT, *name.split(".")[1:])]
        sys.modules[name] = empty


if __name__ == "__main__":
    find_package()
    from chantier.runtime.native.helper.server import main

    main()
