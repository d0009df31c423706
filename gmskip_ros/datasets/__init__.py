"""Rendered driving scenes and dataset readers."""
