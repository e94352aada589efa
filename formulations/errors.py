"""The errors a user can cause, and the one that no user causes. Each message is one line: what was wrong, with the value, and the way out."""


class InputError(ValueError):
    """The caller's data cannot be used as it is; nothing was computed or written."""


class DependencyError(ImportError):
    """Something that must be installed is not; the message names the exact command."""


class SoundnessError(RuntimeError):
    """A guard caught a number that would bound and cannot be true: a fault of this package or of a library under it. Nothing is published. Never ignore it."""
