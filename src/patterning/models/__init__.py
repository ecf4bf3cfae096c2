"""Reference models and adapters, all with a leading replica axis."""
