"""digits: a Flower app that learns to read handwritten digits."""
