"""One signed request: obstore makes no buckets."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import time
import urllib.error
import urllib.request
from collections.abc import Mapping


def make_bucket(port: int, bucket: str, environment: Mapping[str, str], patience: float = 20.0) -> None:
    """Create a bucket if it is not there, as soon as the server lets us."""
    deadline = time.monotonic() + patience
    while True:
        try:
            _put(port, bucket, environment)
            return
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 409:
                    return
                if time.monotonic() > deadline:
                    raise AssertionError(f"{error.code}: {error.read()[:500]!r}") from error
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _put(port: int, bucket: str, environment: Mapping[str, str]) -> None:
    """AWS Signature Version 4 of an empty PUT."""
    now = datetime.datetime.now(datetime.UTC)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    region = environment["AWS_REGION"]
    host = f"127.0.0.1:{port}"
    nothing = hashlib.sha256(b"").hexdigest()
    headers = {"host": host, "x-amz-content-sha256": nothing, "x-amz-date": stamp}
    names = ";".join(headers)
    canonical = "\n".join(["PUT", f"/{bucket}", "", *(f"{k}:{v}" for k, v in headers.items()), "", names, nothing])
    scope = f"{day}/{region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{environment['AWS_SECRET_ACCESS_KEY']}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    who = f"{environment['AWS_ACCESS_KEY_ID']}/{scope}"
    headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={who}, SignedHeaders={names}, Signature={signature}"
    request = urllib.request.Request(f"http://{host}/{bucket}", method="PUT", headers=headers)
    with urllib.request.urlopen(request, timeout=10):
        pass
