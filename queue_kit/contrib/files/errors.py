"""What the file store raises beside the queue's own exceptions and those of the storage itself.

    QueueKitError
    ├── InvalidFile (ValueError)    a file that must not be stored or cannot be read so; names the argument
    ├── FileNotFound (LookupError)  no file has this id
    ├── ImageRefused (ValueError)   an image that is not worked on; says why
    ├── InvalidFileToken            an access token that does not let anybody in
    └── FilesNotDeleted             the storage refused to delete objects; names some, with the reasons

An object that is gone from storage is Python's own `FileNotFoundError`, on every kind of storage.
"""

from collections.abc import Mapping
from uuid import UUID

from queue_kit.errors import QueueKitError


class InvalidFile(QueueKitError, ValueError):
    """A file that must not be stored. `field` names the argument."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field: str = field
        self.problem: str = problem


class FileNotFound(QueueKitError, LookupError):
    """No file has this id."""

    def __init__(self, file_id: UUID) -> None:
        super().__init__(f"there is no file with id {file_id}")
        self.file_id: UUID = file_id


class InvalidFileToken(QueueKitError):
    """An access token that is expired, of another file, not signed with this key, or no token at all."""


class FilesNotDeleted(QueueKitError):
    """The storage refused to delete `count` objects. `reasons` has some of their keys, each with what it said."""

    def __init__(self, count: int, reasons: Mapping[str, str]) -> None:
        shown = "; ".join(f"{key}: {reason}" for key, reason in reasons.items())
        super().__init__(f"{count:,} objects could not be deleted, among them {shown}")
        self.count: int = count
        self.reasons: dict[str, str] = dict(reasons)


class ImageRefused(QueueKitError, ValueError):
    """An image that is not worked on; the file itself is kept, and sent as it is.

    `reason` is one word: `format` (none that is decoded, or broken from its beginning), `animated`, `damaged` (broken
    further on), `bytes`, `pixels`, `memory` or `time` (more than allowed). `detail` says it in words.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"the image is not worked on ({reason}): {detail}")
        self.reason: str = reason
        self.detail: str = detail
