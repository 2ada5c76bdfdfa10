# SPDX-License-Identifier: Apache-2.0
"""Networks that CNI plugins make (CNI specification 1.1): one program a plugin, its configuration on standard input.

A configuration is a list of plugins, or one plugin alone, which counts as a list of one. ADD goes through the list and hands
each plugin the result of the one before, DEL goes back with the result of the whole. The loopback interface is up before the
first plugin runs, so a list needs no `loopback`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chantier.errors import ChantierError, ConfigError, NotFoundError, UnsupportedError
from chantier.values import dataclass

from .leases import Lease

BINARY_DIRS = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
"""Where plugins are looked for if `cniBinaryPath` does not say: upstream's place, and those of distributions."""
INTERFACE = "eth0"
_LIMIT_S = 60.0
_ENV = ("PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR")
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"  # plugins call iptables, which is not in every PATH
_SINCE = (0, 4)  # specification 0.4.0 brought CHECK, and prevResult for DEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A network configuration as JSON has it. `file` is where it was read."""

    file: str
    name: str
    version: str
    plugins: tuple[Mapping[str, Any], ...]
    disable_check: bool = False

    def request(self, index: int, previous: object) -> bytes:
        """What plugin `index` is given on standard input."""
        whole = {**self.plugins[index], "cniVersion": self.version, "name": self.name}
        whole.pop("capabilities", None)  # those name what a runtime may add as runtimeConfig; we add nothing
        if previous is not None:
            whole["prevResult"] = previous
        return json.dumps(whole).encode()

    @property
    def remembers(self) -> bool:
        """Whether plugins are told their earlier result again."""
        return _numbers(self.version) >= _SINCE

    @property
    def checks(self) -> bool:
        return not self.disable_check and self.remembers


def load(path: str) -> Plan:
    """Read a .conf, .json or .conflist file. Raises ConfigError that names the file and what is wrong in it."""

    def wrong(cause: str, hint: str = "the CNI specification, section 1, says what such a file holds") -> ConfigError:
        return ConfigError(f'failed to read cni config "{path}": {cause}', file=path, hint=hint)

    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as err:
        raise wrong(str(err.strerror).lower(), "name the file as cniConfigPath in [worker.oci]") from err
    except UnicodeDecodeError as err:
        raise wrong("it is not UTF-8") from err
    try:
        found = json.loads(text)
    except ValueError as err:
        raise wrong(f"it is not JSON: {err}") from err
    if not isinstance(found, dict):
        raise wrong("want an object")
    plugins = found.get("plugins") if "plugins" in found else [found]
    if not isinstance(plugins, list) or not plugins or not all(isinstance(plugin, dict) for plugin in plugins):
        raise wrong("plugins: want a list of objects that is not empty")
    for index, plugin in enumerate(plugins):
        kind = plugin.get("type")
        if not isinstance(kind, str) or not kind or "/" in kind:
            raise wrong(
                f"plugins[{index}].type: want the name of a program" if "plugins" in found else "type: want the name of a program"
            )
    name, version = found.get("name"), found.get("cniVersion", "0.1.0")
    if not isinstance(name, str) or not name:
        raise wrong("name: want a text")
    if not isinstance(version, str) or not _numbers(version):
        raise wrong(f"cniVersion: want a version, as 1.0.0, got {version!r}")
    return Plan(
        file=path,
        name=name,
        version=version,
        plugins=tuple(plugins),
        disable_check=found.get("disableCheck") in (True, "true"),
    )


class Cni:
    """Implements `Provider`. `dirs` are searched in order; all plugins must be there."""

    kind = "cni"

    def __init__(self, plan: Plan, dirs: Sequence[str]) -> None:
        self._plan = plan
        self._dirs = tuple(dirs)
        if not any(os.path.isdir(each) for each in self._dirs):
            raise ConfigError(
                f'failed to read cni binary dir "{os.pathsep.join(self._dirs)}": no such directory',
                hint="install CNI plugins (Debian: containernetworking-plugins), or name their directory as cniBinaryPath",
            )
        for plugin in plan.plugins:
            _program(plugin["type"], self._dirs)
        self._mutex = threading.Lock()
        self._made = False  # what the plugins share between containers

    def attach(self, lease: Lease, hostname: str) -> None:
        """ADD. When a plugin fails, those before it are undone."""
        state: dict[str, Any] = {**_as_state(self._plan, self._dirs), "args": _args(hostname)}
        lease.write(self.kind, state)
        with self._first_alone():
            previous: object = None
            for index in range(len(self._plan.plugins)):
                previous = _call("ADD", self._plan, index, previous, self._dirs, lease.id, lease.namespace, state["args"])
        lease.write(self.kind, {**state, "result": previous})

    @contextmanager
    def _first_alone(self) -> Iterator[None]:
        """Until one ADD has gone well nobody else adds, in this process or in another of this network namespace.

        Plugins look for a bridge or a chain and then make it (firewall: CNI-ADMIN): two at once both find nothing, and one fails.
        """
        if self._made:
            yield
            return
        with self._mutex, open("/proc/self/ns/net", "rb") as namespace:
            if not self._made:
                fcntl.flock(namespace, fcntl.LOCK_EX)
            yield
            self._made = True

    def check(self, lease: Lease) -> None:
        """CHECK, where the configuration has it."""
        state = lease.noted().get("state", {})
        if self._plan.checks:
            for index in range(len(self._plan.plugins)):
                _call(
                    "CHECK", self._plan, index, state.get("result"), self._dirs, lease.id, lease.namespace, state.get("args", "")
                )

    def close(self) -> None:
        """There is nothing of ours."""


def detach(lease: Lease, state: Mapping[str, Any]) -> None:
    """DEL, by what was noted: the configuration may have changed since. Goes on after a failure, and raises the first one."""
    plan = Plan(file=state["file"], name=state["name"], version=state["version"], plugins=tuple(state["plugins"]))
    result = state.get("result") if plan.remembers else None
    failed: ChantierError | None = None
    for index in reversed(range(len(plan.plugins))):
        try:
            _call("DEL", plan, index, result, state["dirs"], lease.id, lease.namespace, state["args"])
        except ChantierError as err:
            failed = failed or err
    if failed is not None:
        raise failed


def _as_state(plan: Plan, dirs: Sequence[str]) -> dict[str, Any]:
    return {
        "file": plan.file,
        "name": plan.name,
        "version": plan.version,
        "plugins": [dict(plugin) for plugin in plan.plugins],
        "dirs": list(dirs),
    }


def _args(hostname: str) -> str:
    """CNI_ARGS: plugins that serve names (dnsname) take the step's own from here, as BuildKit gives it."""
    if not hostname:
        return ""
    if any(char in hostname for char in ";=") or hostname.split() != [hostname]:
        raise UnsupportedError(f"the hostname {hostname!r} cannot be told to CNI plugins", hint="use a host name of RFC 1123")
    return f"K8S_POD_NAME={hostname};IgnoreUnknown=1"


def _call(
    command: str, plan: Plan, index: int, previous: object, dirs: Sequence[str], id: str, namespace: str, args: str
) -> object:
    """One plugin: its result, None where there is none. Raises UnsupportedError with the plugin's own words."""
    kind = str(plan.plugins[index]["type"])
    env = {name: os.environ[name] for name in _ENV if name in os.environ}
    env["PATH"] = os.pathsep.join(part for part in (env.get("PATH", ""), _SBIN) if part)
    env |= {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": id,
        "CNI_NETNS": namespace,
        "CNI_IFNAME": INTERFACE,
        "CNI_PATH": os.pathsep.join(dirs),
    }
    if args:
        env["CNI_ARGS"] = args

    def failed(cause: str, code: object = None) -> UnsupportedError:
        told = f" (code {code})" if code is not None else ""
        return UnsupportedError(
            f'cni plugin "{kind}" of network "{plan.name}" failed to {command}: {cause}{told}',
            hint=f"the network is configured in {plan.file}",
        )

    try:
        done = subprocess.run(
            [_program(kind, dirs)],
            input=plan.request(index, previous),
            capture_output=True,
            timeout=_LIMIT_S,
            check=False,
            env=env,
        )
    except subprocess.TimeoutExpired as err:
        raise failed(f"it did not end within {_LIMIT_S:.0f} s") from err
    except OSError as err:
        raise failed(f"it could not be started: {err.strerror}") from err
    said = done.stderr.decode(errors="replace").strip()
    try:
        answer = json.loads(done.stdout) if done.stdout.strip() else None
    except ValueError as err:
        text = done.stdout.decode(errors="replace").strip()
        raise failed(f"its answer is not JSON: {text[:200]!r}" + (f"; {said}" if said else "")) from err
    if done.returncode:
        error = answer if isinstance(answer, dict) else {}
        cause = (
            ": ".join(str(error[key]) for key in ("msg", "details") if error.get(key)) or said or f"exit code {done.returncode}"
        )
        raise failed(cause, error.get("code"))
    if command == "ADD" and not isinstance(answer, dict):
        raise failed("it gave no result")
    return answer


def _program(kind: str, dirs: Sequence[str]) -> str:
    found = shutil.which(kind, path=os.pathsep.join(dirs))
    if found is None:
        raise NotFoundError(
            f'cni plugin "{kind}" not found in {os.pathsep.join(dirs)}',
            hint="install it there (Debian: containernetworking-plugins), or name its directory as cniBinaryPath in [worker.oci]",
        )
    return found


def _numbers(version: str) -> tuple[int, ...]:
    """(1, 0, 0) of "1.0.0", () if it is none."""
    parts = version.split(".")
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else ()


__all__ = ["BINARY_DIRS", "INTERFACE", "Cni", "Plan", "detach", "load"]
