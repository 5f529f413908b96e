"""The built-in tasks; reached by import path only, as a user's own are."""
