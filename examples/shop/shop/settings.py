"""What differs from one installation of the shop to the next, read from the environment once, at the start."""

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """`folder` is for uploads, outgoing mail, and what is not given: the SQLite file, the key of the sessions."""

    folder: Path
    database_url: str = field(repr=False)  # it may hold a password
    session_key: str = field(repr=False)
    metrics_token: str = field(default="", repr=False)
    lease: float = 30.0

    @classmethod
    def from_environment(cls) -> "Settings":
        """SHOP_FOLDER, SHOP_DATABASE_URL, SHOP_SESSION_KEY, SHOP_METRICS_TOKEN and SHOP_LEASE, all optional."""
        folder = Path(os.environ.get("SHOP_FOLDER", "data"))
        folder.mkdir(parents=True, exist_ok=True)
        return cls(
            folder=folder,
            database_url=os.environ.get("SHOP_DATABASE_URL", f"sqlite:///{folder / 'shop.db'}"),
            session_key=os.environ.get("SHOP_SESSION_KEY") or _kept_key(folder / "session.key"),
            metrics_token=os.environ.get("SHOP_METRICS_TOKEN", ""),
            lease=float(os.environ.get("SHOP_LEASE", cls.lease)),
        )


def _kept_key(file: Path) -> str:
    """A random key that outlives a restart, or everybody would have to log in again."""
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(64))
    return file.read_text()
