"""How the problems of many groups are solved together, fast."""
