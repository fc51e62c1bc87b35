"""What is asked for: methods, widths, specs, rounds."""
