"""Run the benchmarks one after the other: ``python tests/benchmarks [NAME ...]``, e.g. ``... centers``.

Each ``bench_*.py`` beside this file is a script of its own; it ends with a non-zero status where a promised ratio is
missed.
"""

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def main(names: list[str]) -> int:
    scripts = {path.stem.removeprefix("bench_"): path for path in sorted(FOLDER.glob("bench_*.py"))}
    if unknown := [name for name in names if name not in scripts]:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(scripts)}", file=sys.stderr)
        return 2
    # one thread each, set before any library starts its own: ratios then compare algorithms
    environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
    failed = []
    for name in names or scripts:
        print(f"\n==== {name} ====", flush=True)
        if subprocess.run([sys.executable, str(scripts[name])], env=environment).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
