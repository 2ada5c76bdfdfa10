# SPDX-License-Identifier: Apache-2.0
"""Where a build's result goes: `-o`, `--push`, `--load` as values (builders.md 5.5)."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence

from chantier.errors import UsageError
from chantier.values import dataclass, field, replace

FILE_TYPES = ("tar", "oci", "docker")
DIRECTORY_TYPES = ("local",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One exporter of the request. `dest` is a path of the user's, `-` for standard output, "" for none."""

    type: str
    dest: str = ""
    attrs: Mapping[str, str] = field(default_factory=dict)
    load: bool = False  # goes into the local engine, not to `dest`


def parse_output(text: str) -> Output:
    """One `-o` value. Raises UsageError with docker buildx's texts."""
    fields = next(csv.reader([text]), [])
    if len(fields) == 1 and fields[0] == text and not text.startswith("type="):
        if text == "-":
            return Output(type="tar", dest="-")
        return Output(type="local", dest=text)
    kind = dest = ""
    attrs: dict[str, str] = {}
    for part in fields:
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"invalid value {part}", hint="outputs are written type=KIND,key=value,…")
        key = key.strip().lower()
        if key == "type":
            kind = value
        elif key == "dest":
            dest = value
        else:
            attrs[key] = value
    if not kind:
        raise UsageError("type is required for output", hint="for example -o type=oci,dest=image.tar")
    if kind == "registry":
        return Output(type="image", attrs={"push": "true", "unpack": "false"} | attrs, dest=dest)
    return Output(type=kind, dest=dest, attrs=attrs)


def plan_outputs(
    outputs: Sequence[Output],
    *,
    tags: Sequence[str],
    push: bool,
    load: bool,
    annotations: Sequence[tuple[str, str]],
    stdout_is_tty: bool,
    default: str = "",
) -> list[Output]:
    """Add what --push and --load mean, names and annotations, and check that the destinations can be meant."""
    if default and not outputs and not push and not load:
        outputs = [Output(type=default, load=default == "docker")]
    outs = [o for o in outputs if o.type != "cacheonly"]
    if push:
        images = [o for o in outs if o.type == "image"]
        if images:
            outs = [replace(o, attrs={**o.attrs, "push": "true"}) if o.type == "image" else o for o in outs]
        else:
            outs.append(Output(type="image", attrs={"push": "true", "unpack": "false"}))
    if load and not any(o.type == "docker" and not o.dest for o in outs):
        outs.append(Output(type="docker", load=True))
    return [_checked(o, tags, annotations, stdout_is_tty=stdout_is_tty) for o in _one_stdout(outs)]


def _one_stdout(outs: list[Output]) -> list[Output]:
    if sum(1 for o in outs if o.dest == "-" or (o.type in ("tar", "oci") and not o.dest)) > 1:
        raise UsageError("multiple outputs configured to write to stdout")
    return outs


def _checked(out: Output, tags: Sequence[str], annotations: Sequence[tuple[str, str]], *, stdout_is_tty: bool) -> Output:
    attrs = dict(out.attrs)
    if out.type in ("image", "oci", "docker"):
        if tags and "name" not in attrs:
            attrs["name"] = ",".join(tags)
        attrs.update(annotations)
    if out.type == "image" and attrs.get("push") in ("", "true", "1") and "push" in attrs and not attrs.get("name"):
        raise UsageError("tag is needed when pushing to registry", hint="name the image with -t NAME")
    if out.type == "docker" and not out.dest:
        return replace(out, attrs=attrs, load=True)
    if out.type in FILE_TYPES:
        dest = out.dest or "-"
        if dest == "-" and stdout_is_tty:
            raise UsageError(f"dest file is required for {out.type} exporter. refusing to write to console", hint="add dest=FILE")
        if dest != "-" and os.path.isdir(dest) and attrs.get("tar", "true") not in ("false", "0"):
            raise UsageError(f"destination file {dest} is a directory")
        return replace(out, attrs=attrs, dest=dest)
    if out.type in DIRECTORY_TYPES:
        if not out.dest:
            raise UsageError("dest is required for local exporter", hint="write -o DIRECTORY or -o type=local,dest=DIRECTORY")
        if out.dest == "-":
            raise UsageError("dest cannot be stdout for local exporter")
        if os.path.exists(out.dest) and not os.path.isdir(out.dest):
            raise UsageError(f"destination directory {out.dest} is a file")
        if attrs.get("mode", "copy") not in ("copy", "delete"):
            raise UsageError(f'invalid local exporter mode "{attrs["mode"]}"', hint="modes are copy and delete")
    elif out.dest:
        raise UsageError(f"dest is not supported for {out.type} exporter")
    return replace(out, attrs=attrs)
