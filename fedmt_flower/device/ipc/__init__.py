"""What the processes of a device say to each other, and how arrays pass between them."""
