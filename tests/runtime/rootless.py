# SPDX-License-Identifier: Apache-2.0
KINDS = ["runc", "native", "native-python"]
