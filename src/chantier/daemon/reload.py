# SPDX-License-Identifier: Apache-2.0
"""Which changes of a config file cannot take effect while a daemon runs: clients say so too, before they send a new one."""

from __future__ import annotations

from chantier.config.restart import changes_that_need_a_restart

__all__ = ["changes_that_need_a_restart"]
