"""The parsers that are fuzzed: for each, valid files of its own, how they are damaged, and what reads them."""

from tests.fuzz import archives, models, text_files
from tests.fuzz.made import Parser

MILLION = 1_000_000

PARSERS = (
    Parser("TOML experiment", MILLION, text_files.toml),
    Parser("command-line overrides", MILLION, text_files.overrides),
    Parser("manifest.json + shard", MILLION, models.manifests),
    Parser("state.json, config.json of runs and saved models", 100_000, models.states),
    Parser("official and diffusers config.json", 200_000, models.official_configs),
    Parser("official .ckpt", 100_000, models.checkpoints),
    Parser("official sidecar", MILLION, models.sidecars),
    Parser("model.safetensors header", MILLION, models.weights),
    Parser("optimizer table", MILLION, models.optimizers),
    Parser("lists csv, tsv, txt, jsonl", MILLION, text_files.lists),
    Parser("tar shards", MILLION, archives.tars),
    Parser("images", MILLION, archives.images),
    Parser("metrics.jsonl, skipped.txt", MILLION, text_files.logs),
    Parser("report inputs", 10_000, models.reports),
    Parser("measurements and grid.json", 20_000, text_files.measurements),
    Parser("npz of images", MILLION, archives.npz),
)
"""The fourteen of the table of faults, and two kinds of file that came later."""
