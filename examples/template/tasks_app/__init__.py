"""A federation of several tasks, to copy and to change."""
