"""What is known of a function besides its axes: roles, kinds, norms, batch axes, exactness."""
