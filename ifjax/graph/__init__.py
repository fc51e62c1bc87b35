"""Any JAX function -> groups of coupled axes, and back again at another width."""
