"""The vocabulary: frozen values and their invariants, free of torch, Flower and any device."""
