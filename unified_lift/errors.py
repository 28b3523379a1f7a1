"""The one exception that users see: its message names the file or flag and the fix."""


class UserError(ValueError):
    """Something the user can repair: the message names the file or flag and the fix (CLI: exit code 2)."""
