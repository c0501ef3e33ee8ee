"""Arrays larger than memory; needs numpy (``pip install 'dstorage[array]'``)."""
