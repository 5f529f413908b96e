"""What a device is and does, measured from outside its workers: rates alone and together, use, facts."""
