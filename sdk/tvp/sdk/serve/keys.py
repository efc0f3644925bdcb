"""Who may ask: a file of keys, and how a key is compared."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ..errors import RequestError
from .refusals import Refusal

SHORTEST = 16  # characters of a key
ADMIN = "admin"


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        name: of the key, for the log and for taking turns; an address where there are no keys.
        is_admin: whether tasks may be loaded and dropped.
    """

    name: str
    is_admin: bool = False


class Keys:
    """The keys of a server, read from a file. Without a file, everybody may ask, and nobody is an admin.

    Each line has a name and a key, and `admin` where the key may load and drop tasks. `#` begins a comment.

    Raises:
        RequestError: the file cannot be read, others may read it, or a line is wrong.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._known: list[tuple[bytes, Caller]] = []
        if file is not None:
            self.read()

    def read(self) -> None:
        """Read the file anew; where it is wrong, the keys stay as they were."""
        assert self.file is not None
        try:
            with self.file.open(encoding="utf-8") as stream:
                mode = os.fstat(stream.fileno()).st_mode
                lines = stream.read(2**20).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"The keys in {self.file} cannot be read: {error}.") from error
        if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
            raise RequestError(f"Others may read the keys in {self.file}. Run: chmod 600 {self.file}")
        known: list[tuple[bytes, Caller]] = []
        for number, line in enumerate(lines, 1):
            words = line.split("#")[0].split()
            if not words:
                continue
            where = f"{self.file}, line {number}"
            if len(words) not in (2, 3) or words[2:] not in ([], [ADMIN]):
                raise RequestError(f"{where}: a line has a name and a key, and 'admin' where it may load tasks.")
            name, key = words[:2]
            if len(key) < SHORTEST:
                raise RequestError(
                    f"{where}: the key of {name!r} has {len(key)} characters; at least {SHORTEST} are needed. "
                    "python -c 'import secrets; print(secrets.token_urlsafe())' makes one."
                )
            if any(caller.name == name for _, caller in known):
                raise RequestError(f"{where}: the name {name!r} comes twice.")
            known.append((_digest(key), Caller(name, bool(words[2:]))))
        if not known:
            raise RequestError(f"{self.file} has no keys. Write a line such as: camera-1 KEY")
        self._known = known

    @property
    def names(self) -> list[str]:
        """The names of all keys."""
        return [caller.name for _, caller in self._known]

    def find(self, authorization: str | None) -> Caller | None:
        """Return who sent this header; None for no key or a wrong one.

        Digests are compared, and all of them: the time says nothing of how much of a key is right, or of which one.
        """
        scheme, _, key = (authorization or "").partition(" ")
        digest, found = _digest(key.strip()), None
        for known, caller in self._known:
            if hmac.compare_digest(known, digest):
                found = caller
        return found if scheme.lower() == "bearer" else None

    def caller(self, authorization: str | None, address: str) -> Caller:
        """Return who asks; raises Refusal where there are keys and this one is none of them."""
        if self.file is None:
            return Caller(address)
        found = self.find(authorization)
        if found is None:
            what = "This is none of the server's keys." if authorization else "A key is needed."
            raise Refusal(401, f"{what} Send one as the header 'Authorization: Bearer KEY'.", "wrong_key")
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
