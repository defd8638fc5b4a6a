"""From the trunk's state at a position to the indices of its groups: one file a head."""
