"""From a wanted change to weights on the data."""
