"""What an internet controller can be told, checked: settings come from the catalog and count as hostile.

Credentials are never settings: they come from the environment or the profile files of the clouds' own tools, at `open`.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from dstorage.controller import Settings
from dstorage.errors import InvalidArgumentError
from dstorage_controllers.compression import MAX_LEVEL
from dstorage_controllers.internet.layout import MAX_PACK_BYTES, MIN_PACK_BYTES
from dstorage_controllers.settings import CAPACITY, RANK, SWITCH, TEXT, TEXT_OR_NONE, Setting, check, shown

SCHEMES = ("s3", "gs", "az", "file")

_SETTINGS = {
    "url": TEXT,
    "endpoint": TEXT_OR_NONE,
    "region": TEXT_OR_NONE,
    "profile": TEXT_OR_NONE,
    "allow_http": SWITCH,
    "ca_file": TEXT_OR_NONE,
    "capacity": CAPACITY,
    "rank": RANK,
    "pack_bytes": Setting((int,), MIN_PACK_BYTES, MAX_PACK_BYTES, power_of_two=True),
    "compress": Setting((int, bool), 0, MAX_LEVEL),
    "key_file": TEXT_OR_NONE,
    "key_env": TEXT_OR_NONE,
    "connections": Setting((int,), 1, 1024),
    "timeout": Setting((int, float), 0.001, 3600),
    "hedge": SWITCH,
}


class Address(NamedTuple):
    """Where objects are kept.

    Attributes:
        scheme: One of `SCHEMES`.
        bucket: Name of the bucket (Azure: container); of a `file`, the absolute directory.
        prefix: What all names begin with: no slash at either end, or empty.
    """

    scheme: str
    bucket: str
    prefix: str


def check_settings(name: str, settings: Settings) -> None:
    """Check names, types, ranges and what excludes each other.

    Args:
        name: Of the controller, for messages.
        settings: Keyword arguments of `InternetController`.

    Raises:
        InvalidArgumentError: Something is wrong; the message says what is allowed.
    """
    owner = f"internet controller {name!r}"

    def wrong(what: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"{owner}: {what}")

    check(owner, _SETTINGS, settings)
    if settings.get("key_file") is not None and settings.get("key_env") is not None:
        raise wrong("give key_file or key_env, not both")
    try:
        address = parse_url(str(settings.get("url", "")))
        _check_endpoint(settings.get("endpoint"), address, allow_http=bool(settings.get("allow_http")))
    except ValueError as error:
        raise wrong(str(error)) from error
    if address.scheme != "s3" and settings.get("profile") is not None:
        raise wrong("a profile is a matter of s3:// alone; other clouds' credentials come from the environment")


def parse_url(url: str) -> Address:
    """Take ``s3://bucket/prefix``, ``gs://...``, ``az://...`` or ``file:///directory`` apart.

    Raises:
        ValueError: It is none of these, or holds a user, a password or parameters.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ValueError(
            f"the URL must begin with {', '.join(f'{scheme}://' for scheme in SCHEMES)}; {shown(url)} does not"
        )
    if parts.query or parts.fragment:
        raise ValueError(
            f"the URL {shown(url)} has parameters; pass them as arguments, and credentials by the environment"
        )
    if "@" in parts.netloc or ":" in parts.netloc:
        raise ValueError(
            f"the URL {shown(url)} holds more than a bucket; pass endpoint=, and credentials by the environment"
        )
    if parts.scheme == "file":
        if parts.netloc or not parts.path.strip("/"):
            raise ValueError(f"a directory is given as file:///path, not {shown(url)}")
        return Address("file", unquote(parts.path), "")
    if not parts.netloc:
        raise ValueError(f"the URL {shown(url)} names no bucket")
    prefix = unquote(parts.path).strip("/")
    if any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise ValueError(f"the prefix in {shown(url)} has empty or dotted parts")
    return Address(parts.scheme, parts.netloc, prefix)


def _check_endpoint(endpoint: object, address: Address, *, allow_http: bool) -> None:
    if endpoint is None:
        return
    if address.scheme not in ("s3", "az"):
        raise ValueError("an endpoint is a matter of s3:// and az:// alone")
    parts = urlsplit(str(endpoint))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the endpoint must be https://host[:port]")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("the endpoint holds credentials or parameters, which would be kept in the catalog")
    if parts.scheme == "http" and not allow_http:
        raise ValueError(
            "the endpoint is plain http, which shows everybody on the way what you do; pass allow_http=True"
        )
