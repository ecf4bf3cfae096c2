"""Controls and paired effects: no intervention without them."""
