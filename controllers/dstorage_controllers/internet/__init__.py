"""Chunks in a bucket of an object store: S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage."""

from dstorage_controllers.internet.controller import InternetController

__all__ = ["InternetController"]
