"""What `train.py` does: configuration, stages of a run, journal, and the networks it compares."""
