"""Bottlenecks at equal bits, steps and seeds on bundled photographs: PSNR, FD(judge), use of the levels.

    python benchmarks/tokenizer_comparison.py --out runs/comparison [--steps 500] [--seeds 0 1 2] [--table FILE.md]

Every run of `ifsq.bench.bottlenecks` is an ordinary one: interrupted, the same command goes on. Several processes may
share the work: first ``--judge``, then ``--part 0/2`` and ``--part 1/2`` at once, at last ``--table FILE``, of what
is there. LPIPS enters where ``--lpips FILE`` gives VGG16.
"""

import argparse
from pathlib import Path

import torch

from ifsq.bench.bottlenecks import grid, measure, measured, prepare_judge, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--part", default="0/1", help="K/N: every N-th run from the K-th")
    parser.add_argument("--judge", action="store_true", help="train the judge and stop: before parts that run at once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lpips", default="", help="file of torchvision's VGG16")
    parser.add_argument("--table", type=Path, default=None, help="write the table of all runs there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.judge:
        return prepare_judge(options.out)
    settings, (part, parts) = grid(options.seeds), map(int, options.part.split("/"))
    cards = {}
    for setting in settings[part::parts]:
        if options.table and not measured(setting, options.out):
            print(f"{setting.folder}: not measured yet, its row has a seed less")
            continue
        cards[setting.folder] = measure(setting, options.out, options.steps, options.lpips)
        print(setting.folder, {card.metric: dict(card.values) for card in cards[setting.folder]}, flush=True)
    if options.table:
        options.table.write_text(table(settings, cards, options.steps))
    return None


if __name__ == "__main__":
    main()
