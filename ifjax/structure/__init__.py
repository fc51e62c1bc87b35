"""What a network is made of: axes, leaves, members, groups, and where in an array they lie."""
