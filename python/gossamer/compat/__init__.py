# SPDX-License-Identifier: BSD-3-Clause
"""Names of libraries that are gone, so that changing an import is the whole migration."""
