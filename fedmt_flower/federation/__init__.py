"""Everything that knows Flower or Ray."""
