"""Frozen networks of others, written out in plain torch: LPIPS, the Inception network of FID, EfficientNet-Lite0.

``features`` knows those that measure distributions by name, ``network`` is their one face. None learns, and none
belongs into a checkpoint. ``weights`` finds their files.
"""
