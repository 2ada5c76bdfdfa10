# SPDX-License-Identifier: Apache-2.0
"""Fakes we promise to keep, for this project's tests and for those of its users.

Each behaves as the real thing does, as far as its docstring says, and is held to that by checks that run against both.
Import them from their files, so that a test pays only for what it uses: `chantier.testing.registry.FakeRegistry`.
"""
