"""The transformer of the generators that read digits or indices: its sizes, its blocks, its output layers."""
