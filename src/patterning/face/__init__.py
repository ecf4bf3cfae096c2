"""What a user holds: one call that measures χ, and the object it returns."""
