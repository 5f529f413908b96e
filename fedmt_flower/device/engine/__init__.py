"""The resident engine of a device: kept alive, serving clients, running rounds."""
