"""Who may use the viewer, and where it may write: viser itself asks nobody."""

import contextlib
import ipaddress
import re
import secrets
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, urlsplit

from unified_lift.errors import UserError

_PLACE = re.compile(r"(?:https?://)?\[?([\w.-]*\w|[0-9a-f:.]+)\]?\.?(?::(\d+))?")


class Guard:
    """Lets in who holds the token of the printed address, or its cookie, which no other site can send.

    `Host` must be a name of this machine, as a foreign one may be made to lead here; `Origin`, where it comes, too.
    """

    def __init__(self, host: str, *, proxies: Collection[str] = (), folders: Collection[Path] = ()) -> None:
        """Guard a server at `host`, to which names of `proxies` lead too, and which may write into `folders`."""
        self.host, self.token, self.is_asked = host, secrets.token_urlsafe(24), False
        self.is_everywhere = host in ("0.0.0.0", "::")  # noqa: S104
        self.proxies = {name.lower() for name in proxies}
        self._names = {"localhost", *((socket.gethostname(), socket.getfqdn()) if self.is_everywhere else (host,))}
        self._folders = [folder.resolve() for folder in folders]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Let a server that viser starts meanwhile ask first, for each page and socket."""
        from websockets.asyncio import server

        def serve(*args: Any, process_request: Any, plain: Any = server.serve, **settings: Any) -> Any:
            def answer(connection: Any, request: Any) -> Any:
                place = _place(request.headers.get_all("Host"))
                cookie = f"unified_lift_{place and place[1]}={self.token}"  # a name for each port, which cookies ignore
                if why := self._refusal(request, place, cookie):
                    return connection.respond(403, f"{why}\n")
                if (page := process_request(connection, request)) is not None:
                    page.headers["Set-Cookie"] = f"{cookie}; Path=/; HttpOnly; SameSite=Strict"
                return page

            self.is_asked = True
            return plain(*args, process_request=answer, **settings)

        with mock.patch.object(server, "serve", serve):
            yield

    def knows(self, name: str) -> bool:
        """Return whether a host name, or an address without brackets, leads here only."""
        with contextlib.suppress(ValueError):  # an address cannot be made to lead elsewhere
            if ipaddress.ip_address(name).is_loopback or self.is_everywhere:
                return True
        return name in self.proxies or name in map(str.lower, self._names)

    def place(self, named: str, *, own: Collection[Path] = ()) -> Path:
        """Return the place that a window names, links followed; a UserError: outside of the folders and not `own`."""
        try:
            place = Path(named).expanduser().resolve()
        except (ValueError, RuntimeError) as error:  # a zero byte, an unknown user
            raise UserError(f"{named!r}: not a path ({error}); name another") from None
        if place not in map(Path.resolve, own) and not any(folder in place.parents for folder in self._folders):
            told = f"lies outside of {' and '.join(map(str, self._folders))}"
            raise UserError(f"{named}: {told}; name a place there, or start with --allow-write DIR")
        return place

    def _refusal(self, request: Any, place: tuple[Any, ...] | None, cookie: str) -> str:
        """Return why a request is refused, and what to do; nothing where it is not."""
        if place is None or not self.knows(place[0]):
            return f"{place[0] if place else ''!r} is no name of this viewer; start it with --allow-host NAME"
        origins = request.headers.get_all("Origin")
        if origins and (origin := _place(origins)) != place and (origin is None or origin[0] not in self.proxies):
            return "a page of another site may not use this viewer"
        given = [(token, self.token) for token in parse_qs(urlsplit(request.path).query).get("token", [])]
        given += [(part.strip(), cookie) for line in request.headers.get_all("Cookie") for part in line.split(";")]
        if any([secrets.compare_digest(got.encode(errors="replace"), right.encode()) for got, right in given]):
            return ""
        return "open the address that `unified-lift view` printed, with its token"


def _place(headers: list[str]) -> tuple[Any, ...] | None:
    """Return name and port of the one `Host` or `Origin` that came; None where there are several, or none is named."""
    found = _PLACE.fullmatch(",".join(headers).lower())
    return found and found.groups()
