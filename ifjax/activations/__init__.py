"""What flows through a network on data."""
