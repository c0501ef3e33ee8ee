"""Faces that other libraries know, each an optional extra: zarr, fsspec, dask, joblib. See docs/reference/integrations.md."""
