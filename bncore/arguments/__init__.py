"""The first room: checks of everything that a caller passes, before anything is written."""
