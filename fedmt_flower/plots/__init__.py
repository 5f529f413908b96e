"""Pictures of plans and measurements."""
