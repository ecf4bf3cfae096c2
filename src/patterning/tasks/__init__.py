"""What is learned: samples, losses, structure measures."""
