"""Which system user a server process runs as, because Postgres refuses to run as root.

Knows users, folders and capabilities; knows nothing of Postgres.
"""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from pm_dagster.errors import ProcessManagerError


class ServerUserError(ProcessManagerError):
    """A folder for the server exists and is not its own."""


@dataclass(frozen=True)
class ServerUser:
    """The user of a server process; `uid` and `gid` are None when it is simply ourselves."""

    uid: int | None
    gid: int | None

    @classmethod
    def current(cls) -> ServerUser:
        """Ourselves; or, as root, `nobody`, which every machine has, so that no user must be added."""
        if os.geteuid() != 0:
            return cls(None, None)
        nobody = pwd.getpwnam("nobody")
        return cls(nobody.pw_uid, nobody.pw_gid)

    def command(self, command: list[str], folder: Path) -> list[str]:
        """`command` so that it runs as this user, also where `folder` or the program lie in a closed folder."""
        if self.uid is None:
            return command
        switch = ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        if not (_open_to_all(folder) and _open_to_all(Path(command[0]))):
            # A checkout in /root: pass through closed folders by capability rather than open them to everybody.
            switch += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        return [*switch, "--", *command]

    def make_private_folder(self, folder: Path) -> None:
        """Make `folder`, mode 0700, owned by this user; fine if it is there already.

        Raises:
            ServerUserError: it is there but belongs to somebody else, or is no folder.
        """
        if not folder.exists() and not folder.is_symlink():
            folder.mkdir(mode=0o700)
            self._give(folder)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != (os.geteuid() if self.uid is None else self.uid):
            raise ServerUserError(f"{folder} belongs to another user or is no folder. Remove it and start again.")
        folder.chmod(0o700)

    def write(self, path: Path, text: str) -> None:
        """Write `text` to `path`, readable by this user only."""
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        self._give(path)

    def _give(self, path: Path) -> None:
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


def _open_to_all(folder: Path) -> bool:
    """Whether any user may get as far as `folder`."""
    absolute = folder.absolute()
    # The folder itself is the server's own; only the way there matters.
    return all(each.stat().st_mode & stat.S_IXOTH for each in absolute.parents if each.exists())
