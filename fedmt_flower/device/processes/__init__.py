"""The engine's worker processes: forked from a zygote, kept warm in a pool."""
