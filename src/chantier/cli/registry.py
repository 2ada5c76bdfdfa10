# SPDX-License-Identifier: Apache-2.0
"""`chantier registry explain REF`: where an image would come from, and why."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chantier.config import Config, find, load, state_root
from chantier.spec import Reference
from chantier.values import asdict

from .args import Parser

if TYPE_CHECKING:
    from chantier.registry import Explanation
    from chantier.registry.explanation import Auth, HostReport

_EXAMPLE = """chantier registry explain alpine:3.20
chantier registry explain registry.example/team/app:1 --all --json"""


def run(args: Sequence[str], debug: bool) -> int:
    parser = Parser("chantier registry", "Say where an image would come from, and why.", _EXAMPLE)
    add = parser.add_argument
    add("what", choices=("explain",))
    add("reference", metavar="REF", help="an image, as FROM names it")
    add("--all", action="store_true", help="ask every host, also those behind the one that serves")
    add("--config", default=None, metavar="FILE", help="the config file to use instead of the one found")
    add("-D", "--debug", action="store_true", help="log what the registry client does")
    add("--json", action="store_true", help="print JSON")
    add("--root", default=None, metavar="DIR", help="where the engine keeps its state: what is known of hosts and tags")
    given = parser.parse(args)
    path = Path(given.config) if given.config else find(os.environ)
    config = load(path) if path is not None else Config()
    root = Path(given.root) if given.root else state_root(config, os.environ)
    from .logs import logging_to

    with logging_to(sys.stderr, config, debug=debug or given.debug):
        found, known = _explain(Reference.parse(given.reference).with_default_tag(), config, root, everyone=given.all)
    if given.json:
        document = asdict(found) | {"known": known, "config": str(path) if path is not None else None}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        sys.stdout.write(text(found, known))
    return 0 if found.served_by else 1


def _explain(ref: Reference, config: Config, root: Path, *, everyone: bool) -> tuple[Explanation, dict[str, Any] | None]:
    from chantier.driver.embedded import registry_notes
    from chantier.registry import AuthFile, Registries, explain

    logins = AuthFile()
    registries = Registries(config)
    try:
        with registry_notes(root) as (memory, find_known):
            if memory is not None:
                registries.breakers.remember_in(memory)
            found = explain(
                registries, ref, credentials=logins.credentials, source=f"docker's config: {logins.path}", everyone=everyone
            )
            return found, _known(find_known, ref, found.digest)
    finally:
        registries.close()


def _known(find_known: Callable[[str], Any], ref: Reference, digest: str) -> dict[str, Any] | None:
    seen = find_known(str(ref))
    if seen is None:
        return None
    return {
        "digest": str(seen.digest),
        "host": seen.host,
        "at": seen.at,
        "age_s": round(max(0.0, time.time() - seen.at), 1),
        "age": seen.age(),
        "same": digest == seen.digest if digest else None,
    }


def text(found: Explanation, known: dict[str, Any] | None) -> str:
    """For people: a paragraph a host, then what came of it."""
    lines = [found.reference, ""]
    width = max(len(report.host) for report in found.hosts)
    for number, report in enumerate(found.hosts, 1):
        lines.append(f"{number:2d}. {report.role:8}  {report.host:{width}}  {report.decision}: {report.reason}")
        lines += [f"      {line}" for line in _facts(report)]
    lines.append("")
    if found.served_by:
        lines.append(f"served by  {found.served_by}: {found.digest}, {found.media_type}, {found.size} bytes")
    else:
        lines.append(f"not served {found.error}")
        if found.hint:
            lines.append(f"hint       {found.hint}")
    if known is not None:
        same = {True: ", the same", False: ", another one", None: ""}[known["same"]]
        lines.append(f"known here {known['digest']} as {known['host']} said {known['age']}{same}")
    limits = found.limits
    ways = (
        f" ({limits.pulls or limits.blobs} pulls, {limits.pushes or limits.blobs} pushes)"
        if limits.pulls or limits.pushes
        else ""
    )
    lines.append(f"limits     {limits.blobs} blobs{ways} and {limits.metadata} more for metadata at a time")
    return "\n".join(lines) + "\n"


def _facts(report: HostReport) -> list[str]:
    lines = []
    if report.tables:
        lines.append("config: " + ", ".join(f'[registry."{name}"]' for name in report.tables))
    if report.address or report.answer_s is not None:
        lines.append(_way(report))
    if report.tls is not None:
        trust = "verified" if report.tls.verified else "NOT verified (insecure)"
        who = (
            f", certificate of {report.tls.subject} by {report.tls.issuer} until {report.tls.expires}"
            if report.tls.subject
            else ""
        )
        lines.append(f"{report.tls.version} {report.tls.cipher}, {trust}{who}")
    elif report.answer_s is not None and report.scheme == "http":
        lines.append("plain HTTP: not encrypted")
    if report.auth is not None:
        lines.append(_login(report.auth))
    if report.status:
        lines.append(f"answer: {report.status}")
    if report.limit is not None:
        lines.append(f"rate limit: {report.limit}")
    if report.breaker not in ("closed", "off") or report.failures:
        open_for = f" for {report.breaker_open_s:.0f} s more" if report.breaker_open_s else ""
        lines.append(f"circuit breaker: {report.breaker}{open_for}, {report.failures} failures in a row")
    if report.hint:
        lines.append(f"hint: {report.hint}")
    return lines


def _way(report: HostReport) -> str:
    parts = [f"{name} {seconds * 1000:.0f} ms" for name, seconds in _times(report) if seconds is not None]
    via = f" through the proxy {report.proxy}" if report.proxy else ""
    return f"{report.scheme} to {report.address or 'its address'}{via}" + (f": {', '.join(parts)}" if parts else "")


def _times(report: HostReport) -> list[tuple[str, float | None]]:
    return [("connect", report.connect_s), ("TLS", report.tls_s), ("answer", report.answer_s)]


def _login(auth: Auth) -> str:
    if auth.scheme == "none":
        return "login: not asked for"
    at = f" from {auth.realm}" if auth.realm else ""
    who = f"as {auth.username} ({auth.source})" if auth.username else f"anonymously, login: {auth.source}"
    return f"login: {auth.scheme}{at}, {who}"
