"""The packed kernels on a 64-bit Arm processor, which qemu emulates here, against slow loops, on random
shapes.

    apt-get install gcc-aarch64-linux-gnu qemu-user
    python tests/kernels/emulated.py [--rounds 60] [--seed N]

The library is compiled for that processor in every set of instructions that the build knows for it, fuzz.c is
linked to it, and run. Without the compiler or qemu it says so and passes.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from runpy import run_path

from sanitized import FLAGS, ROOT

MACHINE, COMPILER = "arm64", "aarch64-linux-gnu-gcc"
EMULATOR = ("qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    if missing := [name for name in (COMPILER, EMULATOR[0]) if not shutil.which(name)]:
        print(f"Emulation: {' and '.join(missing)} not found; passed over.")
        return 0
    build = run_path(str(ROOT / "quept/kernels/build.py"))
    with tempfile.TemporaryDirectory() as room:
        library = build["compile_into"](Path(room), COMPILER, flags=("-O2", *FLAGS[1:]), levels_of=MACHINE)
        program, source = Path(room) / "fuzz", Path(__file__).with_name("fuzz.c")
        linked = (str(source), str(library), f"-Wl,-rpath,{room}", "-lm", "-lpthread", "-o", str(program))
        subprocess.run([COMPILER, *FLAGS, *linked], check=True)
        print(f"Emulation: {MACHINE}, seed {options.seed}: ", end="", flush=True)
        return subprocess.run([*EMULATOR, program, str(options.rounds), str(options.seed)]).returncode


if __name__ == "__main__":
    sys.exit(main())
