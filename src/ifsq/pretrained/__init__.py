"""Frozen networks of others, written out in plain torch: LPIPS, the Inception network of FID, EfficientNet-Lite0.

None can be built without weights, none learns, and none belongs into a checkpoint. ``weights`` finds their files.
"""
