"""The demo and the report: what stands on top of the pipeline."""
