"""``python -m ifsq``, and so ``torchrun -m ifsq``."""

from ifsq.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
