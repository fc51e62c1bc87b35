"""How much is cut where: by the effect of each group on the network's output."""
