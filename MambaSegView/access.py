"""Who may talk to the viewer: the page that was opened from here, and nobody who merely knows the port.

A web site that is open in the same browser could otherwise reach the viewer: browsers let any page connect to a port of
this computer. Two things stop it. The page's address carries a random key without which the connection is refused, and
requests are answered only if they name this server as their host and, where they say where they come from, that too.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

Handler = Callable[[Any], Awaitable[Any]]


def new_key() -> str:
    """A key nobody can guess. It starts with a letter: the page would read a bare number as one and round it."""
    return "k" + secrets.token_urlsafe(24)


def is_loopback(host: str) -> bool:
    """Whether only this computer reaches an address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def is_allowed(host_header: str, origin: str | None, bound_host: str) -> bool:
    """Whether a request may be answered.

    Args:
        host_header: "name:port" the request was sent to.
        origin: Address of the page that sends it; None where the browser sends none (a page that is typed in).
        bound_host: Address the server listens at.
    """
    name = urlsplit(f"//{host_header}").hostname or ""
    # A name that was made to point to this computer (DNS rebinding) is not one of these.
    if is_loopback(bound_host) and name not in LOOPBACK_NAMES and name != bound_host:
        return False
    return origin is None or urlsplit(origin).netloc == host_header


def guard(bound_host: str) -> Any:
    """Middleware for aiohttp that refuses what `is_allowed` does not let through."""
    from aiohttp import web

    async def check(request: Any, handler: Handler) -> Any:
        if not is_allowed(request.headers.get("Host", ""), request.headers.get("Origin"), bound_host):
            raise web.HTTPForbidden(text="This page belongs to another server.")
        return await handler(request)

    return web.middleware(check)
