"""The exports that people own: what streaming services and players give to a person who asks for their history."""

from segue.errors import BadLog
from training.prepare.content import PlainFile
from training.prepare.formats import LogLines
from training.prepare.options import LogKind, PrepareOptions


def read_export(kind: LogKind, plain: PlainFile, options: PrepareOptions) -> LogLines:
    """The lines of a file of an export. Raises BadLog."""
    del options
    raise BadLog(f"{plain.name}: exports of kind {kind} cannot be read yet")
