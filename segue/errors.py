"""The error tree: what can go wrong, and what a user or client then sees.

===================  =========  ===========  ==================================================
error                exit code  HTTP status  raised by
===================  =========  ===========  ==================================================
InputError           2          422          any wrong input that has no class of its own
BadLog               2          -            reading listening logs (`segue prepare`)
BadDataset           2          -            opening a dataset
BadRelease           2          -            opening, writing or serving a release
BadOption            2          -            recipes, `--set`, settings
UnknownTrack         2          404          asking for a track outside the catalogue
UnknownSession       2          404          asking for a session that holds no plays
UnknownRelease       2          404          asking for a release that is not there
SwapRefused          1          409          swapping without a folder, or while another swap runs
ReleasesUnavailable  1          503          the folder of releases cannot be written
StoreUnavailable     1          503          Redis cannot be reached or refuses writes
Overloaded           1          503          asking for more than can be answered in time
ModelUnavailable     1          503          a call of the model that does not return in time
OutOfMemory          1          -            training what does not fit into memory
ProcessLost          1          -            training by several processes, one of which has ended
===================  =========  ===========  ==================================================

A message is one line: the value, what was expected, what to do.
"""

from typing import ClassVar


class SegueError(Exception):
    """Anything that Segue itself reports; its text is meant for the user."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"


class InputError(SegueError):
    """The user's input is wrong."""

    exit_code = 2
    http_status = 422
    title = "Invalid input"


class BadLog(InputError):
    """A listening log cannot be read."""


class BadDataset(InputError):
    """A dataset folder is damaged, of another version or not a dataset."""


class BadRelease(InputError):
    """A release folder is damaged, of another version or unfit for what is asked of it."""


class BadOption(InputError):
    """An option is unknown, of the wrong type or out of its range."""


class UnknownTrack(InputError):
    """A track is not in the catalogue."""

    http_status = 404
    title = "Unknown track"


class UnknownSession(InputError):
    """A session holds no plays: it never did, expired or was erased."""

    http_status = 404
    title = "Unknown session"


class UnknownRelease(InputError):
    """No release goes by a name."""

    http_status = 404
    title = "Unknown release"


class UnknownMap(InputError):
    """A release has no map of its tracks."""

    http_status = 404
    title = "No map"


class SwapRefused(SegueError):
    """The service cannot swap releases, or not at this moment."""

    http_status = 409
    title = "Swap refused"


class ReleasesUnavailable(SegueError):
    """The folder of releases cannot be read or written."""

    http_status = 503
    title = "Folder of releases unavailable"


class StoreUnavailable(SegueError):
    """The session store cannot be reached or refuses writes; trying again later may help."""

    http_status = 503
    title = "Session store unavailable"

    def __init__(self, text: str, reason: str | None = None) -> None:
        """`text` is for clients; `reason`, which may say where the store is, for the log. They are often the same."""
        super().__init__(text)
        self.reason = reason if reason is not None else text


class Overloaded(SegueError):
    """More is asked for than can be answered in time; trying again a moment later helps."""

    http_status = 503
    title = "Overloaded"


class ModelUnavailable(SegueError):
    """Encoder or index did not answer within the deadline, for one question or for all."""

    http_status = 503
    title = "Model unavailable"


class OutOfMemory(SegueError):
    """Training needs more memory than there is."""

    title = "Out of memory"


class ProcessLost(SegueError):
    """One of the processes that train together has ended; started again, they go on from the last checkpoint."""
