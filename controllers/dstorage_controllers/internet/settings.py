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

SCHEMES = ("s3", "gs", "az", "file")

_TYPES: dict[str, tuple[type, ...]] = {
    "url": (str,),
    "endpoint": (str, type(None)),
    "region": (str, type(None)),
    "profile": (str, type(None)),
    "allow_http": (bool,),
    "ca_file": (str, type(None)),
    "capacity": (int, type(None)),
    "rank": (int,),
    "pack_bytes": (int,),
    "compress": (int,),
    "key_file": (str, type(None)),
    "key_env": (str, type(None)),
    "connections": (int,),
    "timeout": (int, float),
    "hedge": (bool,),
}
_SWITCHES = ("allow_http", "compress", "hedge")
_RANGES: dict[str, tuple[float, float]] = {
    "rank": (-(2**31), 2**31),
    "capacity": (0, 2**63),
    "pack_bytes": (MIN_PACK_BYTES, MAX_PACK_BYTES),
    "compress": (0, MAX_LEVEL),
    "connections": (1, 1024),
    "timeout": (0.001, 3600),
}
_SHOWN = 200


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

    def wrong(what: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"internet controller {name!r}: {what}")

    for key, value in settings.items():
        if key not in _TYPES:
            raise wrong(f"there is no setting {key!r}; there are {', '.join(_TYPES)}")
        if not isinstance(value, _TYPES[key]) or (isinstance(value, bool) and key not in _SWITCHES):
            kinds = " or ".join("None" if kind is type(None) else kind.__name__ for kind in _TYPES[key])
            raise wrong(f"{key} must be {kinds}, not {value!r}")
        if key in _RANGES and isinstance(value, int | float):
            low, high = _RANGES[key]
            if not low <= value <= high:
                raise wrong(f"{key} must be {low:g} to {high:g}, not {value!r}")
    pack = settings.get("pack_bytes", MIN_PACK_BYTES)
    if isinstance(pack, int) and pack & (pack - 1):
        raise wrong(f"pack_bytes must be a power of two, not {pack}")
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
    shown = repr(url.rpartition("@")[2].partition("?")[0][:_SHOWN])
    if parts.scheme not in SCHEMES:
        raise ValueError(f"the URL must begin with {', '.join(f'{scheme}://' for scheme in SCHEMES)}; {shown} does not")
    if parts.query or parts.fragment:
        raise ValueError(f"the URL {shown} has parameters; pass them as arguments, and credentials by the environment")
    if "@" in parts.netloc or ":" in parts.netloc:
        raise ValueError(
            f"the URL {shown} holds more than a bucket; pass endpoint=, and credentials by the environment"
        )
    if parts.scheme == "file":
        if parts.netloc or not parts.path.strip("/"):
            raise ValueError(f"a directory is given as file:///path, not {shown}")
        return Address("file", unquote(parts.path), "")
    if not parts.netloc:
        raise ValueError(f"the URL {shown} names no bucket")
    prefix = unquote(parts.path).strip("/")
    if any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise ValueError(f"the prefix in {shown} has empty or dotted parts")
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
