#!/usr/bin/env bash
# One would guess: `safetensors.torch.load_file` gives tensors of their own, as `torch.load` does unless it is told
#   `mmap=True`; what happens to the file afterwards is no matter.
# What happens (safetensors 0.8.0, torch 2.13.0, Linux): on the CPU the tensors are views of the file. When it is
#   written over in place, as `cp new.safetensors old.safetensors` does, numbers that were loaded before change in memory,
#   in every process that has them. Writing to the tensor does not reach the file.
# Here: what is loaded is copied into the module (store/weights.py), and files are replaced by renaming, never in place.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.3.5 safetensors==0.8.0
cat > "$folder/show.py" <<'PYTHON'
import pathlib, shutil, sys
import safetensors, torch
from safetensors.torch import load_file, save_file

folder = pathlib.Path(sys.argv[1])
old, new = folder / "old.safetensors", folder / "new.safetensors"
save_file({"x": torch.ones(4)}, old)
save_file({"x": torch.zeros(4)}, new)
loaded = load_file(old)["x"]
torch.save(torch.ones(4), folder / "old.pt")
by_torch = torch.load(folder / "old.pt")
torch.save(torch.zeros(4), folder / "new.pt")
print(f"safetensors {safetensors.__version__}, torch {torch.__version__}")
print(f"loaded by safetensors {loaded.tolist()}, by torch {by_torch.tolist()}")
shutil.copyfile(new, old)
shutil.copyfile(folder / "new.pt", folder / "old.pt")
print(f"after the files were copied over: safetensors {loaded.tolist()}, torch {by_torch.tolist()}; right: both ones")
changed = loaded.eq(0).all() and by_torch.eq(1).all()
sys.exit(0 if changed else 1)
PYTHON
if "$folder/venv/bin/python" "$folder/show.py" "$folder"; then
    echo "as described: tensors that safetensors loaded change with their file"
else
    echo "no longer as described"
    exit 1
fi
