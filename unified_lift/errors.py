"""The one exception that users see: its message names the file or flag and the fix."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can repair: the message names the file or flag and the fix (CLI: exit code 2)."""
