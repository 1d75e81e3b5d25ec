"""The pretraining races alone: python -m benchmarks.pretrain is python -m benchmarks with --only for them."""

import sys

from benchmarks.__main__ import main

if __name__ == "__main__":
    sys.argv[1:1] = ["--only", "pretrain15m", "pretrain110m", "rates"]
    main()
