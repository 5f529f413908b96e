"""clinic: the wine app, of the older kind, and the cells app as one federation."""
