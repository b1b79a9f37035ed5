"""Who may see the dashboard, and who may change something with it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from starlette.requests import Request


@dataclass(frozen=True, slots=True)
class Access:
    """What `authorize` gives to somebody whom it lets in.

    `who` names them in the audit log. `act` lets them retry, cancel, run and pause; without it they only read.
    `payloads` shows them what jobs carry, and the texts of errors, which often quote it. Raises `TypeError` for a `who`
    that is no text and a permission that is no bool.

    >>> from queue_kit.dashboard import Access
    >>> Access("ada", act=True).payloads
    True
    """

    who: str
    act: bool = False
    payloads: bool = True

    def __post_init__(self) -> None:
        who: object = self.who
        if not isinstance(who, str):
            raise TypeError(
                f"who must be text, which names them in the log, not {type(who).__name__}: give str(user.id)"
            )
        for field in ("act", "payloads"):
            permission: object = getattr(self, field)
            if not isinstance(permission, bool):
                raise TypeError(
                    f"{field} must be True or False, not {type(permission).__name__}: any text would be true"
                )


Authorize: TypeAlias = Callable[[Request], Access | None] | Callable[[Request], Awaitable[Access | None]]
"""A function, async or not, that lets a request in (`Access`) or does not (`None`: 403). It may raise Starlette's
`HTTPException`, to ask for a password (401) or to lead to a login page (303 with a `Location`)."""

_ACCESS = "queue_kit.dashboard.access"


def let_in(request: Request, access: Access) -> None:
    """Note that a request was let in."""
    request.scope[_ACCESS] = access


def access_of(request: Request) -> Access | None:
    """As what a request was let in; `None` when it was not."""
    access = request.scope.get(_ACCESS)
    return access if isinstance(access, Access) else None


def admitted(request: Request) -> Access:
    """As what a request was let in; nothing is shown and nothing changed where it was not."""
    access = access_of(request)
    assert access is not None
    return access


def depth_of(request: Request) -> int:
    """How many levels below the dashboard's root the browser takes a page to be: to it, `%2F` is no slash."""
    raw, path = request.scope.get("raw_path") or b"", path_of(request)
    return path.count("/") - 1 - raw.lower().count(b"%2f")


def path_of(request: Request) -> str:
    """The path of a request, below where the dashboard is mounted."""
    path, root = str(request.scope["path"]), str(request.scope.get("root_path", ""))
    return path.removeprefix(root) if path == root or path.startswith(f"{root}/") else path
