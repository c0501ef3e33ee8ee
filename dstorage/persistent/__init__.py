"""Copy-on-write metadata of the Linux kernel's persistent-data library, compatible to the byte."""
