#!/usr/bin/env bash
# One would guess: `WebDataset(urls, shardshuffle=100)` reads the shards in another order in every epoch, as `.shuffle(1000)` does with
# the samples; a seed makes a run repeatable, not its epochs alike.
# What happens (webdataset 1.0.2): the order is drawn once, when the object is made, and is the same in every epoch, also where no seed
# was given. Samples are shuffled anew, but only within the buffer: a shard that is read last is read last in every epoch. Nothing is said.
# `detshuffle=True` draws a new order an epoch, in one process; it counts epochs in the object, so that workers of a DataLoader which
# are started anew for every epoch all count from the beginning.
# Here: shards are read by their own index, and every epoch's order follows from the seed and the epoch (data/sampler.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet webdataset==1.0.2 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import pickle
import sys

import webdataset

print("webdataset", webdataset.__version__)
for shard in range(8):
    with webdataset.TarWriter(f"{shard}.tar") as file:
        for sample in range(4):
            file.write({"__key__": f"{shard}_{sample}", "txt": "a"})


def epochs(dataset, fresh=False):
    """Samples of three epochs. fresh: each by a new copy, as a DataLoader's workers have them unless they are persistent."""
    kept = pickle.dumps(dataset)
    return [[row["__key__"] for row in (pickle.loads(kept) if fresh else dataset)] for _ in range(3)]


def show(name, found):
    for number, samples in enumerate(found):
        print(f"{name}, epoch {number}:", *samples[::4])
    return found[0] == found[1] == found[2]


alike = {
    "shardshuffle": show("shardshuffle=100, shards", epochs(webdataset.WebDataset("{0..7}.tar", shardshuffle=100))),
    "in workers": show("detshuffle, new workers, shards", epochs(webdataset.WebDataset("{0..7}.tar", shardshuffle=100, detshuffle=True), True)),
    "one process": show("detshuffle, shards", epochs(webdataset.WebDataset("{0..7}.tar", shardshuffle=100, detshuffle=True))),
    "samples": show("samples shuffled as well, every fourth", epochs(webdataset.WebDataset("{0..7}.tar", shardshuffle=100).shuffle(16))),
}
print("the same in three epochs:", alike, "right: False for all")
sys.exit(0 if alike == {"shardshuffle": True, "in workers": True, "one process": False, "samples": False} else 1)
PYTHON
