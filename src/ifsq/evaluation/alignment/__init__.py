"""The layers of a run beside a teacher: whose (``subject``, ``layers``), what they ``measure``, and how it is shown."""
