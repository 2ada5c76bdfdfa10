# SPDX-License-Identifier: Apache-2.0
"""The helper of the native sandbox for machines without a C compiler: sandbox.c in Python, record by record.

A program of its own (`__main__.py`), never imported by the engine. It uses no thread, so it may fork. What each record means,
and why things are done in this order, stands in sandbox.c; both helpers pass the same tests.

    server      one an engine; forks the monitors
    monitor     one a container
    first       its first process, which becomes the step; the guard of a step in a container that runs
    places      the records that make a container, mounts those of its file systems
    hooks       programs that are run meanwhile
    step        what a process gives up before its program is executed
    plan        the records
"""
