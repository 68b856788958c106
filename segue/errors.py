"""The exception classes of Segue, with the exit code and HTTP status of each.

===================  =========  ===========  ==================================================
error                exit code  HTTP status  raised by
===================  =========  ===========  ==================================================
InputError           2          422          any invalid input without a more specific class
BadLog               2          -            reading listening logs (`segue prepare`)
BadDataset           2          -            opening a dataset
BadRelease           2          -            opening, writing or serving a release
BadOption            2          -            recipes, `--set`, settings
UnknownTrack         2          404          asking for a track outside the catalogue
UnknownSession       2          404          asking for a session without plays
UnknownRelease       2          404          asking for a release that does not exist
BadFilter            2          422          a filter of tracks that cannot be read or evaluated
BadPolicy            2          422          a policy file with an unknown key or a wrong value
UnknownPolicy        2          404          asking for a policy that the service does not have
NoEmbeddings         2          409          diversity of a release without an encoder
UnknownAttribute     2          422          asking for an attribute that a release does not have
UnknownSeeds         2          404          a station of which a release knows no track and no artist
NoPlayHead           2          409          asking for caution of a release that cannot predict skips
SwapRefused          1          409          swapping without a folder, or while another swap runs
EndsExperiment       1          409          a swap that would end the running A/B test
NoReleasesFolder     1          409          removing or adding a track without a folder of releases
TooManyTracks        1          409          removing or adding more tracks than the service keeps
ReleasesUnavailable  1          503          the folder of releases cannot be written
StoreUnavailable     1          503          Redis cannot be reached or refuses writes
Overloaded           1          503          load shedding: the request cannot be answered in time
ModelUnavailable     1          503          a model call that exceeds its deadline
OutOfMemory          1          -            training that needs more memory than available
ProcessLost          1          -            multi-process training, after one process has ended
===================  =========  ===========  ==================================================

A message is one line with the invalid value, the expected value and the remedy.
"""

from typing import ClassVar


class SegueError(Exception):
    """Base class of all errors that Segue raises. The message is written for the user."""

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
    """A dataset folder is damaged, has another format version, or is not a dataset."""


class BadRelease(InputError):
    """A release folder is damaged, has another format version, or does not support the requested operation."""


class BadOption(InputError):
    """An option is unknown, of the wrong type or out of its range."""


class UnknownTrack(InputError):
    """A track is not in the catalogue."""

    http_status = 404
    title = "Unknown track"


class UnknownSession(InputError):
    """A session has no plays: it never had any, it expired, or it was erased."""

    http_status = 404
    title = "Unknown session"


class UnknownRelease(InputError):
    """There is no release with the given name."""

    http_status = 404
    title = "Unknown release"


class UnknownMap(InputError):
    """A release has no map of its tracks."""

    http_status = 404
    title = "No map"


class BadFilter(InputError):
    """A filter of tracks cannot be read, or compares an attribute with a value of another kind."""

    title = "Invalid filter"


class BadPolicy(InputError):
    """A policy file cannot be read, has an unknown key or a value out of range."""

    title = "Invalid policy"


class UnknownPolicy(InputError):
    """The service has no policy of the given name."""

    http_status = 404
    title = "Unknown policy"


class NoEmbeddings(InputError):
    """A policy has a diversity above 0, and the release has no encoder and so no item embeddings."""

    http_status = 409
    title = "No embeddings"


class UnknownAttribute(InputError):
    """A filter or a list of fields names an attribute that the release does not have."""

    title = "Unknown attribute"


class UnknownSeeds(InputError):
    """A release knows none of the tracks and artists of a station."""

    http_status = 404
    title = "Unknown seeds"


class NoPlayHead(InputError):
    """A request has a caution above 0, and the release has no play head."""

    http_status = 409
    title = "No play head"


class SwapRefused(SegueError):
    """The service cannot swap releases, or another swap is in progress."""

    http_status = 409
    title = "Swap refused"


class EndsExperiment(SwapRefused):
    """A swap would change a release of the running A/B test, and the request does not say that the test may end."""

    title = "A/B test running"


class NoReleasesFolder(SegueError):
    """The service has no folder of releases, which the request needs."""

    http_status = 409
    title = "No folder of releases"


class TooManyTracks(SegueError):
    """As many tracks are removed or added as the service keeps."""

    http_status = 409
    title = "Too many tracks"


class ReleasesUnavailable(SegueError):
    """The folder of releases cannot be read or written."""

    http_status = 503
    title = "Folder of releases unavailable"


class StoreUnavailable(SegueError):
    """The session store cannot be reached or refuses writes. A later retry may succeed."""

    http_status = 503
    title = "Session store unavailable"

    def __init__(self, text: str, reason: str | None = None) -> None:
        """Create the error. Clients see `text`. The log contains `reason`, which may include the store's address.

        `reason` defaults to `text`.
        """
        super().__init__(text)
        self.reason = reason if reason is not None else text


class Overloaded(SegueError):
    """The service is overloaded and rejects the request (load shedding). Retry after a short delay."""

    http_status = 503
    title = "Overloaded"


class ModelUnavailable(SegueError):
    """The encoder or the index did not respond within the deadline, for one request or for all requests."""

    http_status = 503
    title = "Model unavailable"


class OutOfMemory(SegueError):
    """Training needs more memory than is available."""

    title = "Out of memory"


class ProcessLost(SegueError):
    """A process of a multi-process training has ended. A restart resumes from the last checkpoint."""
