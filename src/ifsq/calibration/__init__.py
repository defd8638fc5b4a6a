"""Calibration: fit a quantizer's bound to the latents that reach it, and report what that changes."""
