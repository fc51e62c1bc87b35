"""Work on several devices and threads: placement, rings, shardings, calls to the host."""
