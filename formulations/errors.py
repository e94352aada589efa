"""The errors a user can cause. Each message is one line: what was wrong, with the value, and the way out."""


class InputError(ValueError):
    """The caller's data cannot be used as it is; nothing was computed or written."""


class DependencyError(ImportError):
    """Something that must be installed is not; the message names the exact command."""
