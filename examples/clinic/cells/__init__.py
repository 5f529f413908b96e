"""cells: a Flower app that tells malignant cells from benign ones."""
