"""A plugin's isolation is a setting."""
