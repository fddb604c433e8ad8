"""Checks of everything that a caller passes, done before anything is written."""
