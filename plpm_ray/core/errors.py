"""Errors that say what went wrong, where, and what to do about it."""

from __future__ import annotations


class PlpmError(Exception):
    """Base of every error that plpm_ray raises on purpose.

    Args:
        message: what is wrong and where (file, column, row, key).
        hint: what the reader can do about it; printed on its own line.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def __reduce__(self):
        # keyword-only arguments do not survive the default pickling, and Ray moves errors between processes
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(cls: type[PlpmError], message: str, hint: str | None) -> PlpmError:
    return cls(message, hint=hint)


class ConfigError(PlpmError):
    """A configuration is wrong: unknown key, bad value, missing file."""


class DataError(PlpmError):
    """Input data breaks the contract: unreadable file, missing column, too many bad rows."""


class StorageError(PlpmError):
    """Something could not be read or written: full disk, no permission, damaged manifest."""


class BundleError(PlpmError):
    """A model bundle is incomplete, of another format, or does not fit the data."""


class SupportError(PlpmError):
    """An estimate is refused because the logs hold too little of what the policy does."""


class StateError(PlpmError):
    """The per-user state store cannot be reached or holds another layout."""


class PartError(PlpmError):
    """A part of a composed navigator that runs elsewhere failed, or did not answer in time."""
