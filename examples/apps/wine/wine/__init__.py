"""wine: a Flower app, of the older kind, that tells three cultivars of wine apart."""
