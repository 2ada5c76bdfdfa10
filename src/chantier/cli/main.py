# SPDX-License-Identifier: Apache-2.0
"""Finds the command, runs it, and turns what it raises into a message and an exit code."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from collections.abc import Callable, Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    "build": ("build", "build an image from a Dockerfile"),
    "cache-mount": ("cache_mount", "list, export and import cache mounts"),
    "completion": ("completion", "print a shell's completion script"),
    "config": ("config", "check a config file, or show what is in effect"),
    "create": ("create", "create a builder, or change one"),
    "daemon": ("daemon", "show what a daemon does, and what waits for what"),
    "dial-stdio": ("dial_stdio", "proxy standard input and output to a builder"),
    "doctor": ("doctor", "say what this machine can do for builds, and what to do about the rest"),
    "du": ("du", "show what a builder's cache holds"),
    "fsck": ("fsck", "check the state directory, and repair it"),
    "gc": ("gc", "say what garbage collection would remove, and why"),
    "graph": ("graph", "draw the graph of a build"),
    "history": ("history", "what was built: records, logs, why steps ran"),
    "inspect": ("inspect", "show a builder"),
    "ls": ("ls", "list builders"),
    "prune": ("prune", "delete what a builder's cache holds"),
    "registry": ("registry", "say where an image would come from, and why"),
    "rm": ("rm", "remove builders"),
    "stop": ("stop", "stop a builder"),
    "update": ("update", "change the config of a builder that exists"),
    "use": ("use", "choose the builder to build with"),
    "version": ("version", "print the version"),
}
HIDDEN = {"buildctl": ("buildctl", "what drivers run beside a daemon")}
_ALIASES = {"b": "build"}

_OBJECTS = 200_000
"""So many new objects between two searches for cycles: importing our modules makes many, and none is garbage."""

_USAGE = """Usage: chantier [--debug] COMMAND

BuildKit and Buildx for Python: builds container images with no daemon and no docker command.

Commands:
{commands}

Run `chantier COMMAND --help` for what a command takes, with an example.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `chantier`. Returns the exit code; run as the command, it may end the process with it."""
    if argv is not None:
        return _main(list(argv))
    from chantier import driver

    driver.is_command = True
    gc.set_threshold(_OBJECTS, 10, 10)
    return _leave(_main(sys.argv[1:]))


def _leave(code: int) -> int:
    """End the process without taking the interpreter apart, which costs a short command a sixth of its time.

    Threads and what was left for the end of the process have their end first, as they would. Where an output cannot be
    flushed, Python says and does what it always does.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return code
    os._exit(code)


def _main(args: list[str]) -> int:
    debug = bool(os.environ.get("DEBUG"))
    while args and args[0] in ("-D", "--debug"):
        debug = True
        args.pop(0)
    if not args or args[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return 0
    if args[0] == "--version":
        args = ["version"]
    if args[0] == "__complete":
        from .completion import complete

        return complete(args[1:])
    name = _ALIASES.get(args[0], args[0])
    if name not in COMMANDS and name not in HIDDEN:
        return _unknown(args[0])
    return run_command(load(name), args[1:], debug=debug)


def usage() -> str:
    return _USAGE.format(commands="\n".join(f"  {name:11} {about}" for name, (_, about) in COMMANDS.items()))


def run_command(command: Callable[[Sequence[str], bool], int], args: Sequence[str], *, debug: bool) -> int:
    """Run it; an error becomes a message on standard error and its exit code."""
    try:
        return command(args, debug)
    except KeyboardInterrupt:
        sys.stderr.write("ERROR: interrupted\n")
        return 130
    except BrokenPipeError:
        # Whoever read our output is gone: nothing more to say, and Python must not say it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as err:  # the last place: every error must become a message and a code
        from chantier.display.errors import print_error
        from chantier.errors import ChantierError

        prefix = getattr(err, "prefix", "")
        print_error(err, sys.stderr, prefix=prefix, debug=debug)
        return err.exit_code if isinstance(err, ChantierError) else 1


def load(name: str) -> Callable[[Sequence[str], bool], int]:
    from importlib import import_module

    run: Callable[[Sequence[str], bool], int] = import_module(f"chantier.cli.{(COMMANDS | HIDDEN)[name][0]}").run
    return run


def _unknown(name: str) -> int:
    import difflib

    near = difflib.get_close_matches(name, [*COMMANDS, *_ALIASES], n=1)
    sys.stdout.write(usage())
    sys.stderr.write(f'ERROR: unknown command: "{name}"' + (f" (did you mean {near[0]}?)" if near else "") + "\n")
    return 1
