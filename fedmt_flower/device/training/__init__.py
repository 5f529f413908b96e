"""A task at work in its process: a user's functions, their data, steps and rounds."""
