# SPDX-License-Identifier: Apache-2.0
"""What may be configured: the text of a `buildkitd.toml` to frozen values, and values back to text.

Promises: every key of BuildKit's file is accepted with BuildKit's meaning (key names match without regard to case, as
there); an unknown or ill-typed key is a ConfigError that names file, line, full key and the nearest valid key, and lists
every other mistake of the file in its `detail`. Refuses: to guess. What BuildKit marks as deprecated is accepted and named in
`Config.warnings`.

Chantier's own settings live under one table that BuildKit does not know and ignores, `[chantier]`; what concerns one
registry host is `[chantier.registry."HOST"]`. Names of registry tables may have a star (`*`, `*.corp.example`): BuildKit takes
them for a registry that nobody names. `json_schema` describes the whole file for editors. A new setting is one dataclass field in `values.py`: reader, writer and the
error texts follow from it.

Three names to know: `Config`, `load`, `find`.
"""

from .effective import Setting, settings, show
from .gc import GcRule, gc_rules
from .json_schema import json_schema
from .load import discover, find, is_rootless, line_of, load, parse, read_text, state_root
from .patterns import is_pattern, matching
from .read import dotted
from .units import Size
from .values import (
    CacheGhaConfig,
    CdiConfig,
    ChantierConfig,
    Config,
    ContainerdConfig,
    CredentialsConfig,
    DnsConfig,
    FrontendConfig,
    GcPolicyConfig,
    GrpcConfig,
    HistoryConfig,
    KeyPair,
    LogConfig,
    NetworkConfig,
    OciConfig,
    OtelConfig,
    RegistryConfig,
    RegistryExtra,
    SystemConfig,
    TlsConfig,
    WorkerConfig,
)
from .write import dump

__all__ = [
    "CacheGhaConfig",
    "CdiConfig",
    "ChantierConfig",
    "Config",
    "ContainerdConfig",
    "CredentialsConfig",
    "DnsConfig",
    "FrontendConfig",
    "GcPolicyConfig",
    "GcRule",
    "GrpcConfig",
    "HistoryConfig",
    "KeyPair",
    "LogConfig",
    "NetworkConfig",
    "OciConfig",
    "OtelConfig",
    "RegistryConfig",
    "RegistryExtra",
    "Setting",
    "Size",
    "SystemConfig",
    "TlsConfig",
    "WorkerConfig",
    "discover",
    "dotted",
    "dump",
    "find",
    "gc_rules",
    "is_pattern",
    "is_rootless",
    "json_schema",
    "line_of",
    "load",
    "matching",
    "parse",
    "read_text",
    "settings",
    "show",
    "state_root",
]
