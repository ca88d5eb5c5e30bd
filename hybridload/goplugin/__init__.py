"""The go-plugin protocol on its own, in its own words."""
