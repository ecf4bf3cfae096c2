"""The superposition experiment: its subject, the study of it, and its part of the page."""
