"""Jaxprs: walked, evaluated, and how every primitive relates the axes of its operands."""
