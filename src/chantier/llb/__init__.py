# SPDX-License-Identifier: Apache-2.0
"""A build as an immutable graph of values: BuildKit's LLB, written from Python and read from bytes.

Promises: what `State.marshal` writes has the digests the Go client would give the same graph; loading checks a graph
whole before anything runs; both cost time linear in its size. Refuses: to look at the network or at files. Images are
not resolved here, so `image("alpine")` means the tag until an engine pins it.

Three names to know: `State`, `image`, `load`.
"""

from .combine import diff, merge
from .constraints import Constraints, Group, How, Location, Resources, SourceMap
from .definition import (
    Graph,
    LoadedVertex,
    default_name,
    load,
    marshal_op,
    platform_of,
    platform_to_pb,
    raw_ops,
    rewritten,
    validate,
)
from .file import DOCKERFILE, BoundAction, Copying, FileAction, Owner, copy, mkdir, mkfile, rm, symlink
from .git_url import GitRef, GitUrl
from .run import DEFAULT_PATH, Device, Mount, Proxy, Secret, Ssh, Ulimit, bind, cache, tmpfs
from .sources import GitSignature, git, http, image, image_blob, local, oci_layout, oci_layout_blob, parse_list
from .state import Ran, State, deferred, from_definition, scratch
from .vertex import range_to_pb

__all__ = [
    "DEFAULT_PATH",
    "DOCKERFILE",
    "BoundAction",
    "Constraints",
    "Copying",
    "Device",
    "FileAction",
    "GitRef",
    "GitSignature",
    "GitUrl",
    "Graph",
    "Group",
    "How",
    "LoadedVertex",
    "Location",
    "Mount",
    "Owner",
    "Proxy",
    "Ran",
    "Resources",
    "Secret",
    "SourceMap",
    "Ssh",
    "State",
    "Ulimit",
    "bind",
    "cache",
    "copy",
    "default_name",
    "deferred",
    "diff",
    "from_definition",
    "git",
    "http",
    "image",
    "image_blob",
    "load",
    "local",
    "marshal_op",
    "merge",
    "mkdir",
    "mkfile",
    "oci_layout",
    "oci_layout_blob",
    "parse_list",
    "platform_of",
    "platform_to_pb",
    "range_to_pb",
    "raw_ops",
    "rewritten",
    "rm",
    "scratch",
    "symlink",
    "tmpfs",
    "validate",
]
