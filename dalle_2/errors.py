"""Every error this package raises on purpose.

Each message is one sentence: what came, what was expected, what to do.
"""


class Dalle2Error(Exception):
    """The root of all errors of this package; `exit_status` is what the command line returns."""

    exit_status = 1


class UsageError(Dalle2Error, ValueError):
    """A wrong argument: the caller can repair it without touching the machine."""

    exit_status = 2


class ConfigError(UsageError):
    """Settings that can't be: an unknown key, a value out of range, a file that is not TOML."""


class CheckpointError(Dalle2Error):
    """Weights that are missing, truncated, of another kind or of other shapes."""


class DataError(Dalle2Error):
    """Pictures or captions that can't be read, or a folder without any."""


class HubError(Dalle2Error):
    """Something is neither in the local hub cache nor reachable over the network."""


class MissingExtra(Dalle2Error):
    """An optional dependency is not installed.

    extra: the name behind `dalle_2[...]`; package: what it installs; purpose: what the caller wanted to do.
    """

    def __init__(self, extra: str, package: str, purpose: str) -> None:
        self.extra, self.package, self.purpose = extra, package, purpose
        super().__init__(f"{purpose} needs {package}, which is missing: run pip install 'dalle_2[{extra}]'")

    def __reduce__(self) -> tuple[type["MissingExtra"], tuple[str, str, str]]:
        # Exceptions are unpickled from their message alone, which would lose two of the three arguments.
        return type(self), (self.extra, self.package, self.purpose)
