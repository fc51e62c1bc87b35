"""What is left of a network, set to what it was on a few inputs."""
