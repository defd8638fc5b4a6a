"""Other projects' checkpoints, in and out. Called by ``cli``."""
