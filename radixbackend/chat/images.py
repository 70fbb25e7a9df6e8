"""Images of messages: from a URL to the bytes of a file.

Rules. Messages may come from strangers, so a URL opens no file of this machine, and nothing is fetched unless its host
is on the list of those allowed, redirects included. What is fetched is bounded in size and time. Whether the bytes are
an image is for the engine to find out, which bounds its pixels, too. Blocks its thread.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, unquote_to_bytes, urljoin, urlsplit

from radixbackend.chat.message import ImagePart
from radixbackend.errors import InvalidRequestError, MissingDependencyError

MOST_BYTES = 32 << 20
"""Of one image file."""

FETCH_SECONDS = 15.0
"""To have an image, redirects included."""

REDIRECTS = 3


def read_image(part: ImagePart, hosts: tuple[str, ...]) -> bytes:
    """The bytes of an image's file; ``hosts`` are those that images may be fetched from.

    Raises `InvalidRequestError`, worded to follow the name of the place.
    """
    if part.data is not None:
        return _bounded(part.data)
    scheme = part.url[:8].partition(":")[0].lower()
    if scheme == "data":
        return _bounded(_inline(part.url))
    if scheme in ("http", "https"):
        return _fetched(part.url, hosts)
    raise InvalidRequestError(
        "has an image whose URL begins neither with data: nor with https:; send the image itself as a data: URL"
    )


def _bounded(data: bytes) -> bytes:
    if len(data) > MOST_BYTES:
        raise InvalidRequestError(f"has an image of {len(data):,} bytes; at most {MOST_BYTES:,} are taken")
    return data


def _inline(url: str) -> bytes:
    """The payload of a ``data:`` URL (RFC 2397)."""
    head, comma, payload = url[5:].partition(",")
    kind, *options = head.lower().split(";")
    if not comma:
        raise InvalidRequestError("has a data: URL without a comma; it reads data:image/png;base64,…")
    if not kind.strip().startswith("image/"):
        raise InvalidRequestError(
            f"has a data: URL of type {kind or 'text/plain'!r}; images are image/png and the like"
        )
    if len(payload) > 2 * MOST_BYTES:
        raise InvalidRequestError(f"has an image of more than {MOST_BYTES:,} bytes")
    if "base64" not in (option.strip() for option in options):
        return unquote_to_bytes(payload)
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError) as fault:
        raise InvalidRequestError(f"has an image that is not base64: {fault}") from fault


def _fetched(url: str, hosts: tuple[str, ...]) -> bytes:
    try:
        import httpx
    except ImportError as fault:
        raise MissingDependencyError("fetching images needs httpx; pip install 'radixbackend[vision]'") from fault
    deadline = time.monotonic() + FETCH_SECONDS
    try:
        with httpx.Client(follow_redirects=False, timeout=FETCH_SECONDS) as client:
            for _ in range(REDIRECTS + 1):
                _check_host(url, hosts)
                with client.stream("GET", url) as response:
                    if not response.is_redirect:
                        response.raise_for_status()
                        return b"".join(_pieces(response, deadline))
                    url = urljoin(url, response.headers["location"])
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as fault:
        # The URL is the client's own, but what answered may be nobody else's business.
        reason = getattr(getattr(fault, "response", None), "status_code", None) or type(fault).__name__
        raise InvalidRequestError(f"has an image that could not be fetched ({reason})") from fault
    raise InvalidRequestError(f"has an image whose URL redirects more than {REDIRECTS} times")


def _check_host(url: str, hosts: tuple[str, ...]) -> None:
    try:
        parts = urlsplit(url)
        name = _name(parts)
    except ValueError as fault:
        raise InvalidRequestError("has an image whose URL cannot be read") from fault
    if parts.scheme not in ("http", "https") or name not in hosts or "@" in parts.netloc:
        raise InvalidRequestError(
            f"has an image on {name or 'no host'!r}, from where images are not fetched; send the image itself as a "
            "data: URL, or allow the host (allowed_image_hosts)"
        )


def _name(parts: SplitResult) -> str:
    """The host, with its port where it is not the scheme's own."""
    host = (parts.hostname or "").lower()
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    return host if parts.port in (None, usual) else f"{host}:{parts.port}"


def _pieces(response: Any, deadline: float) -> Iterator[bytes]:
    size = 0
    for piece in response.iter_bytes():
        size += len(piece)
        if size > MOST_BYTES:
            raise InvalidRequestError(f"has an image of more than {MOST_BYTES:,} bytes")
        if time.monotonic() > deadline:
            raise InvalidRequestError(f"has an image that took longer than {FETCH_SECONDS:g} seconds to fetch")
        yield piece
