"""The packed kernels under the address, undefined-behavior and thread sanitizers, against slow loops,
on random shapes.

    python tests/kernels/sanitized.py [--rounds 60] [--seed N]

fuzz.c is compiled with the library's sources once for each sanitizer, and run. A compiler without one is told
in a word and passed over; a fault ends with the sanitizer's report and status 1.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from runpy import run_path

ROOT = Path(__file__).parents[2]
SANITIZERS = {
    "address and undefined behavior": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "threads": ("-fsanitize=thread",),
}
FLAGS = ("-O1", "-g", "-std=gnu11", "-fPIC", "-fno-math-errno", "-Wno-psabi")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    build = run_path(str(ROOT / "quept/kernels/build.py"))
    try:
        compiler, _ = build["compiler"]()
    except build["BuildError"] as error:
        print(f"Sanitizers: {error}.")
        return 0
    for name, flags in SANITIZERS.items():
        with tempfile.TemporaryDirectory() as room:
            if not works(compiler, flags, Path(room)):
                print(f"Sanitizers: {compiler} has none for {name}; passed over.")
                continue
            library = build["compile_into"](Path(room), compiler, flags, FLAGS)
            program = Path(room) / "fuzz"
            source = str(Path(__file__).with_name("fuzz.c"))
            linked = [source, str(library), f"-Wl,-rpath,{room}", "-lm", "-lpthread", "-o", str(program)]
            subprocess.run([compiler, *flags, *FLAGS, *linked], check=True)
            print(f"Sanitizers: {name}, seed {options.seed}: ", end="", flush=True)
            if subprocess.run([program, str(options.rounds), str(options.seed)]).returncode:
                return 1
    return 0


def works(compiler: str, flags: tuple[str, ...], room: Path) -> bool:
    """Whether a program under these sanitizers compiles, and starts."""
    (room / "empty.c").write_text("int main(void) { return 0; }")
    made = [compiler, *flags, str(room / "empty.c"), "-o", str(room / "empty")]
    if subprocess.run(made, capture_output=True).returncode:
        return False
    return subprocess.run([room / "empty"], capture_output=True).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
