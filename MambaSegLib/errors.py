"""Errors with a message for the person who can act on it, and the exit code the command line ends with."""


class MambaSegError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the `mambaseg` command returns."""

    exit_code = 1


class InputError(MambaSegError, ValueError):
    """A volume, option or model that cannot be used as it is; the message says what was found and what to do."""

    exit_code = 2


class BundleError(InputError):
    """A trained-model bundle that is damaged, hostile or of an unknown version."""


class EnvironmentProblemError(MambaSegError, RuntimeError):
    """Something this computer lacks: a package, a device, memory, disk space."""

    exit_code = 3


class BackendUnavailableError(EnvironmentProblemError):
    """A scan backend asked for by name cannot run here; the message carries its reason."""


class CancelledError(MambaSegError):
    """The user stopped the work; nothing half-written is left behind."""

    exit_code = 130
