"""The command line: what it prints, how it stops, and how it loads what a user wrote."""
