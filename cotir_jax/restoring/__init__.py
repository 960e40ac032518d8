"""Restoring pictures, folders and test splits."""
