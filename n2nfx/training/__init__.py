"""Data, and training over masks."""
