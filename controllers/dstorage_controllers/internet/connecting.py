"""From settings to obstore's view of a bucket, with credentials from the usual places alone.

For S3 these are the environment (``AWS_ACCESS_KEY_ID`` and so on, web identity, container and instance roles) and the profiles in
``~/.aws/credentials``; for GCS ``GOOGLE_APPLICATION_CREDENTIALS`` and gcloud's own; for Azure ``AZURE_STORAGE_ACCOUNT_NAME``,
``AZURE_STORAGE_ACCOUNT_KEY`` and so on. They are read at `open`, handed to obstore and kept nowhere.
"""

from __future__ import annotations

import configparser
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, ObjectStore, S3Store

from dstorage.controller import Settings
from dstorage.errors import ControllerError
from dstorage_controllers.internet.settings import Address, parse_url

CONNECT_S = 5.0
RETRIES = 4
FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 2.0
MAX_FILE_BYTES = 2**20
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


def connect(name: str, settings: Settings) -> ObjectStore:
    """What obstore makes of the bucket; nothing is sent yet.

    Args:
        name: The controller's name, for messages.
        settings: Checked ones.

    Raises:
        ControllerError: A file cannot be read, or obstore will not take what it was given.
    """
    address = parse_url(str(settings["url"]))
    timeout = float(settings["timeout"])  # type: ignore[arg-type]  # checked
    client: dict[str, Any] = {
        "allow_http": bool(settings["allow_http"]),
        "timeout": timedelta(seconds=timeout),
        "connect_timeout": timedelta(seconds=min(timeout, CONNECT_S)),
        "pool_max_idle_per_host": str(settings["connections"]),
    }
    if settings["ca_file"] is not None:
        client["root_certificate"] = _read(name, Path(str(settings["ca_file"])))
    retries: dict[str, Any] = {
        "max_retries": RETRIES,
        "retry_timeout": timedelta(seconds=timeout),
        "backoff": {
            "init_backoff": timedelta(seconds=FIRST_BACKOFF_S),
            "max_backoff": timedelta(seconds=LONGEST_BACKOFF_S),
            "base": 2,
        },
    }
    try:
        return _build(name, address, settings, {"client_options": client, "retry_config": retries})
    except (BaseError, ValueError, OSError) as error:
        if isinstance(error, ControllerError):
            raise
        # Of what is wrong with the configuration; never shows the values of secrets.
        why = str(error).partition("\n")[0][:300]
        raise ControllerError(f"controller {name!r} cannot use {settings['url']}: {why}") from None


def _build(name: str, address: Address, settings: Settings, common: dict[str, Any]) -> ObjectStore:
    if address.scheme == "file":
        return LocalStore(address.bucket, mkdir=True)
    if address.scheme == "gs":
        return GCSStore(address.bucket, **common)
    if address.scheme == "az":
        azure: dict[str, Any] = {} if settings["endpoint"] is None else {"endpoint": str(settings["endpoint"])}
        return AzureStore(address.bucket, **azure, **common)
    # Chunks carry their own seals: what obstore would sign would only be hashed once more.
    s3: dict[str, Any] = {"unsigned_payload": True}
    for key in ("endpoint", "region"):
        if settings[key] is not None:
            s3[key] = str(settings[key])
    if settings["endpoint"] is None and not settings["allow_http"]:
        for variable in _ENDPOINTS:
            if os.environ.get(variable, "").lower().startswith("http://"):
                raise ControllerError(
                    f"controller {name!r}: the endpoint in {variable} is plain http, which shows everybody on the way what you "
                    "do; pass allow_http=True"
                )
    keys = _profile(name, settings["profile"])
    if keys is not None:
        # Not as arguments: obstore would add a session token that the environment has for other keys.
        s3["credential_provider"] = lambda: keys
    return S3Store(address.bucket, **s3, **common)


def _profile(name: str, profile: object) -> dict[str, str | None] | None:
    """What is in a profile, if one is asked for or the environment has no keys."""
    if profile is None and "AWS_ACCESS_KEY_ID" in os.environ:
        return None
    asked = os.environ.get("AWS_PROFILE") if profile is None else str(profile)
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials")
    if asked is None and not path.exists():
        return None
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(_read(name, path).decode())
    except (configparser.Error, UnicodeDecodeError):
        # Their messages quote the lines.
        raise ControllerError(f"controller {name!r} cannot make sense of {path}") from None
    section = asked or "default"
    names = {
        "aws_access_key_id": "access_key_id",
        "aws_secret_access_key": "secret_access_key",
        "aws_session_token": "token",
    }
    found: dict[str, str | None] = (
        {names[key]: value for key, value in parser.items(section) if key in names}
        if parser.has_section(section)
        else {}
    )
    if {"access_key_id", "secret_access_key"} <= set(found):
        return {"token": None, **found, "expires_at": None}
    if asked is not None:
        raise ControllerError(f"controller {name!r} finds no access key for the profile {asked!r} in {path}")
    return None


def _read(name: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise ControllerError(f"controller {name!r} cannot read {path}: {error}") from error
