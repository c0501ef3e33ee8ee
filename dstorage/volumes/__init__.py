"""Thin pools and volumes."""
