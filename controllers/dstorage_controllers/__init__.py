"""The controllers that ship with dstorage, loaded by entry point like anybody else's."""
