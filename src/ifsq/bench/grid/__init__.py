"""The grid: a TOML of axes and settings, its stages, each of which runs once, and what was measured of every cell.

Read ``config``, ``cells``, ``stages``, ``plan``, ``work``, ``runner``, ``results`` in this order.
"""
