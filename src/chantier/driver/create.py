# SPDX-License-Identifier: Apache-2.0
"""Making and changing builders: what `create` decides, without booting anything (builders.md 2.2, 2.3, 3.5)."""

from __future__ import annotations

import os
import shlex
import tomllib
import uuid
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from chantier.errors import ChantierError, NotFoundError, UsageError
from chantier.spec import Platform
from chantier.values import dataclass, replace

from .context import DEFAULT, Contexts
from .delivery import files_of, text_of
from .dial import check_address, is_address
from .group import Group, Node, valid_name
from .names import new_name
from .store import Store

_ENTITLEMENT = "--allow-insecure-entitlement"
_HOST_NETWORK = "network.host"
_RESERVED = ("default", "embedded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The arguments of `create`. None: not given."""

    name: str = ""
    endpoint: str | None = None
    node: str = ""
    driver: str = ""
    driver_opts: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    config: str | None = None
    flags: str | None = None
    append: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    group: Group
    before: Group | None  # as it was
    warnings: tuple[str, ...] = ()


def plan_create(wish: Wish, store: Store, env: Mapping[str, str] = os.environ) -> Made:
    """The builder as it would be; nothing is written. Raises UsageError, NotFoundError, ConfigError."""
    contexts = Contexts(env)
    name, before = _existing(wish, store, contexts)
    driver = _driver(wish, before, contexts, env)
    endpoint = wish.endpoint
    opts = parse_opts(wish.driver_opts)
    config = wish.config or (str(store.default_config) if store.default_config is not None else None)
    if config is not None and driver == "remote":
        raise UsageError(
            "setting config file is not supported for remote driver",
            hint=None if wish.config else f"{config} is used for every builder that is created; move it away",
        )
    files = files_of(config) if config is not None else None
    flags = buildkitd_flags(wish.flags, driver, opts, text_of(files))
    node_name = wish.node
    where, explicit = _endpoint(driver, endpoint, name, node_name, contexts, env)
    platforms = tuple(dict.fromkeys(Platform.parse(p) for text in wish.platforms for p in text.split(",") if p))
    change = _Change(node=node_name, endpoint=where, explicit=explicit, platforms=platforms, flags=flags, opts=opts, files=files)
    if before is None:
        group = Group(name=name, driver=driver, nodes=(change.new(Group(name=name, driver=driver)),))
        warnings: list[str] = []
    else:
        group, warnings = _update(before, change, append=wish.append)
    _no_duplicates(group)
    _check_nodes(group, env)
    return Made(group=group, before=before, warnings=tuple(warnings))


def plan_leave(name: str, node: str, store: Store) -> Group:
    """The builder without the node. Raises UsageError, NotFoundError."""
    if not name:
        raise UsageError("leave requires instance name")
    if not node:
        raise UsageError("leave requires node name")
    found = store.find(name)
    if found is None:
        raise NotFoundError(f'failed to find instance "{name}" for leave')
    if found.node(node) is None:
        raise NotFoundError(f'node "{node}" not found for {found.name}')
    if len(found.nodes) == 1:
        raise UsageError("can not leave last node, do you want to rm instance instead?")
    return replace(found, nodes=tuple(n for n in found.nodes if n.name != node))


def _existing(wish: Wish, store: Store, contexts: Contexts) -> tuple[str, Group | None]:
    name = wish.name
    if wish.append and not name:
        raise UsageError("append requires a builder name")
    if not name:
        return new_name(lambda n: store.find(n) is not None or contexts.exists(n)), None
    valid_name(name)
    if name.lower() in _RESERVED:
        raise UsageError(f"{name} is a reserved name and cannot be used to identify builder instance")
    if contexts.exists(name) and not wish.append:
        raise UsageError(f'instance name "{name}" already exists as context builder')
    found = store.find(name)
    if found is None:
        if wish.append:
            raise NotFoundError(f'failed to find instance "{name}" for append')
        return name, None
    if not wish.node and not wish.append:
        raise UsageError(
            f'existing instance for "{name}" but no append mode, specify the node name to make changes for existing instances'
        )
    return found.name, found


def _driver(wish: Wish, before: Group | None, contexts: Contexts, env: Mapping[str, str]) -> str:
    driver = wish.driver
    if driver and driver not in ("docker-container", "kubernetes", "remote"):
        if driver == "docker":
            raise UsageError('additional instances of driver "docker" cannot be created')
        raise UsageError(f'failed to find driver "{driver}"', hint="drivers are docker-container, kubernetes and remote")
    if before is not None:
        if driver and driver != before.driver:
            raise UsageError(f'existing instance for "{before.name}" but has mismatched driver "{before.driver}"')
        return before.driver
    if driver:
        return driver
    if wish.endpoint is None:
        return "remote" if env.get("BUILDKIT_HOST") else "docker-container"
    # A context's name is that of a Docker engine; a URL that daemons have is a daemon's.
    return "docker-container" if contexts.exists(wish.endpoint) or not is_address(wish.endpoint) else "remote"


def _endpoint(
    driver: str, given: str | None, builder: str, node: str, contexts: Contexts, env: Mapping[str, str]
) -> tuple[str, bool]:
    """The endpoint, and whether it replaces that of a node that exists."""
    if driver == "kubernetes":
        if given is not None:
            raise UsageError(f'kubernetes driver does not support endpoint args "{given}"')
        unique = node or f"buildkit-{uuid.uuid4()}-{uuid.uuid4().hex[:5]}"
        return f"kubernetes:///{builder}?" + urlencode({"deployment": unique, "kubeconfig": env.get("KUBECONFIG", "")}), False
    if driver == "remote":
        where = given or env.get("BUILDKIT_HOST", "")
        if not where:
            raise UsageError("no remote endpoint provided", hint="for example: chantier create tcp://builder.example:1234")
        check_address(where)
        return where, True
    if given is not None:
        if given == DEFAULT:
            return contexts.host(DEFAULT).address, True
        if contexts.exists(given):
            return given, True
        return given if "://" in given else f"tcp://{given}", True
    if contexts.current() == DEFAULT and (env.get("DOCKER_TLS_VERIFY") or env.get("DOCKER_TLS")):
        raise UsageError(
            "could not create a builder instance with TLS data loaded from environment. "
            "Please use `docker context create <context-name>` to create a context for current environment and "
            "then create a builder instance with context set to <context-name>"
        )
    return contexts.key(), False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    node: str
    endpoint: str
    explicit: bool
    platforms: tuple[Platform, ...]
    flags: tuple[str, ...] | None
    opts: Mapping[str, str]
    files: Mapping[str, bytes] | None

    def new(self, group: Group) -> Node:
        name = valid_name(self.node) if self.node else _node_name(group)
        return Node(
            name=name,
            endpoint=self.endpoint,
            platforms=self.platforms or None,
            driver_opts=dict(self.opts) or None,
            flags=self.flags,
            files=self.files,
        )

    def of(self, node: Node) -> Node:
        """A node that exists, changed where something was given."""
        changed = node
        if self.explicit:
            changed = replace(changed, endpoint=self.endpoint)
        if self.platforms:
            changed = replace(changed, platforms=self.platforms)
        if self.flags is not None:
            changed = replace(changed, flags=self.flags)
        if self.opts:
            changed = replace(changed, driver_opts=dict(self.opts))
        if self.files is not None:
            changed = replace(changed, files={**(node.files or {}), **self.files})
        return changed


def _node_name(group: Group) -> str:
    taken = {n.name for n in group.nodes}
    return next(name for i in range(len(taken) + 1) if (name := f"{group.name}{i}".lower()) not in taken)


def _update(group: Group, change: _Change, *, append: bool) -> tuple[Group, list[str]]:
    old = group.node(change.node.lower()) if change.node else None
    if old is None:
        if not append:
            raise NotFoundError(f"node {change.node} not found, did you mean to append?")
        new = change.new(group)
        if group.node(new.name) is not None:
            raise UsageError(f"node {new.name} exists already")
        return _claim(replace(group, nodes=(*group.nodes, new)), new), []
    new = change.of(old)
    warnings = []
    if replace(new, platforms=old.platforms) != old:
        warnings.append("new settings may not be used until builder is restarted")
    return _claim(replace(group, nodes=tuple(new if n.name == old.name else n for n in group.nodes)), new), warnings


def _claim(group: Group, owner: Node) -> Group:
    """A platform is one node's: others lose those of the node that was touched."""
    mine = set(owner.platforms or ())
    if not mine:
        return group
    return replace(
        group,
        nodes=tuple(
            n
            if n.name == owner.name or n.platforms is None
            else replace(n, platforms=tuple(p for p in n.platforms if p not in mine))
            for n in group.nodes
        ),
    )


def _no_duplicates(group: Group) -> None:
    seen: set[str] = set()
    for node in group.nodes:
        if node.endpoint in seen:
            raise UsageError(f"invalid duplicate endpoint {node.endpoint}")
        seen.add(node.endpoint)


def _check_nodes(group: Group, env: Mapping[str, str]) -> None:
    from .builder import driver_of

    for node in group.nodes:
        try:
            driver_of(group.driver, group.name, node, env=env)
        except ChantierError as err:
            raise err.reworded(f"failed to initialize builder {group.name} ({node.name}): {err}") from err


def parse_opts(values: Sequence[str]) -> dict[str, str]:
    """`--driver-opt`: CSV of k=v, later wins. Raises UsageError."""
    import csv

    opts: dict[str, str] = {}
    for value in values:
        try:
            fields = next(csv.reader([value], strict=True), [])
        except csv.Error as err:
            raise UsageError(f"invalid driver option {value!r}: {err}") from err
        for part in fields:
            key, equals, text = part.partition("=")
            if not equals:
                raise UsageError(f'invalid value "{part}", expecting k=v')
            opts[key] = text
    return opts


def buildkitd_flags(text: str | None, driver: str, opts: Mapping[str, str], config: str) -> tuple[str, ...] | None:
    """The daemon's flags. Steps may use the host's network by default, as they are inside of a container anyway."""
    try:
        flags = tuple(shlex.split(text, comments=True)) if text is not None else None
    except ValueError as err:
        raise UsageError("failed to parse buildkit flags: EOF found when expecting closing quote") from err
    granted = _granted(flags or ())
    in_config = tomllib.loads(config).get("insecure-entitlements") or [] if config else []
    if driver == "docker-container" and opts.get("network") == "host" and _HOST_NETWORK not in granted:
        return (*(flags or ()), f"{_ENTITLEMENT}={_HOST_NETWORK}")
    if not granted and _HOST_NETWORK not in in_config and driver in ("docker-container", "kubernetes"):
        return (*(flags or ()), f"{_ENTITLEMENT}={_HOST_NETWORK}")
    return flags


def _granted(flags: Sequence[str]) -> set[str]:
    granted: set[str] = set()
    for index, flag in enumerate(flags):
        name, equals, value = flag.partition("=")
        if name == _ENTITLEMENT:
            granted |= set((value if equals else flags[index + 1] if index + 1 < len(flags) else "").split(","))
    return granted


__all__ = ["Made", "Wish", "buildkitd_flags", "parse_opts", "plan_create", "plan_leave"]
