"""How a device plans its rounds: what it finds out of tasks, which model it uses, what rounds teach it."""
