# SPDX-License-Identifier: Apache-2.0
"""What lies in the contexts is for the builds: none of it is a test of ours."""

collect_ignore_glob = ["*/*"]
