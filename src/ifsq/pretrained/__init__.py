"""Frozen networks of others, written out in plain torch: LPIPS (loss and metric) and the Inception network of FID.

None can be built without weights, none learns, and none belongs into a checkpoint. ``weights`` finds their files.
"""
