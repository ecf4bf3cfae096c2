"""Choose by data which of two algorithms a transformer learns."""
