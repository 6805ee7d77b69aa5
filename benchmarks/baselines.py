"""Ours beside GPTQ, AutoRound and HQQ: same model, same bits, same group size, same calibration text,
measured by the same code.

    python benchmarks/baselines.py --text wiki.test.raw.txt --calibration wiki.valid.raw.txt

Each tool gets a virtual environment of its own under --out, layered over this one: what is installed here
(torch, transformers) is shared, what the tool wants otherwise is installed there. A script of ours in
`tools/` runs in it, quantizes the model in float32 on the CPU and writes the dequantized weights; this
process then measures mean KL from full precision and perplexity on the first --tokens of --text, in windows
of --context, in float32. Ours are --ours (models or artifacts that `ElasticModel.open` takes) at uniform
plans.

--calibration is a text, of which the first --windows x 512 tokens are taken, or a safetensors file with a
tensor "ids" (windows, 512). HQQ looks at the weights alone.

Results go to --out, one JSON file for each (tool, bits, settings): a run that was cut goes on where it was,
and so does one with other tools or bits (`--only hqq --only ours` leaves the others out). A tool's own words
go to TOOL-BITS.log there; one that fails is named in the table with the end of them, and the others go on.

Limits: at W bits and groups of g a weight costs W + (scale + zero) / g bits in every one of them; scales have
16 bits, zero-points 16 (HQQ) or W. So the quality differs and the memory hardly does. AutoRound takes
iterations x blocks steps of 8 windows forth and back through a block, whatever the number of windows; GPTQ a
few forward passes over all of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import time
import venv
from dataclasses import dataclass
from pathlib import Path

import torch
from report import report
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from quept import ElasticModel, PrecisionPlan, zoo
from quept.artifact import variants
from quept.evaluate import Estimate, Reference, Windows, cut, divergence, open_reference

TOOLS = Path(__file__).parent / "tools"
CALIBRATION_CONTEXT = 512
LAST_WORDS = 300  # characters of what a failed tool said


@dataclass(frozen=True)
class Tool:
    """`pins` are what pip installs, `environment` what it needs to be set while installing."""

    script: str
    title: str
    pins: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


ENVIRONMENTS = {
    "hqq": Tool("with_hqq.py", "HQQ", ("hqq==0.2.8.post1",), (("DISABLE_CUDA", "1"),)),
    "gptq": Tool("with_gptq.py", "GPTQ", ("gptqmodel==7.7.0",)),
    "autoround": Tool("with_autoround.py", "AutoRound", ("auto-round==0.16.1",)),
}


class ToolFailed(RuntimeError):
    """A tool could not be installed or run; the message is the end of what it said."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True, help="what quality is measured on")
    parser.add_argument("--calibration", type=Path, required=True, help="a text, or token ids as safetensors")
    parser.add_argument("--model", default="smollm2-135m", help="built-in name or model folder")
    parser.add_argument(
        "--ours",
        action="append",
        metavar="MODEL",
        help="default: --model as it is, and rounded to nearest",
    )
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--group", type=int, default=64, help="of the tools; ours have their artifact's own")
    parser.add_argument(
        "--windows", type=int, default=64, help=f"of {CALIBRATION_CONTEXT} tokens, to calibrate"
    )
    parser.add_argument("--iterations", type=int, default=200, help="of AutoRound, a block")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--only", action="append", choices=("ours", *ENVIRONMENTS), help="repeat for several")
    parser.add_argument("--out", type=Path, default=Path("runs/baselines"))
    options = parser.parse_args()
    options.out = options.out.resolve()  # tools run in it, since some write logs to where they are
    options.calibration = options.calibration.resolve()
    options.out.mkdir(parents=True, exist_ok=True)

    base = ElasticModel.open(options.model, dtype=torch.float32)
    windows = cut(options.text.read_text("utf-8"), base.tokenizer, options.context, options.tokens)
    reference = open_reference(base, windows)
    bench = Bench(options, base, windows, reference)
    wanted = options.only or ["ours", *ENVIRONMENTS]
    plain = [f"{options.model}:rtn"] if variants(options.model) else []
    rows = [bench.full()]
    for bits in options.bits:
        if "ours" in wanted:
            rows += [bench.ours(source, bits) for source in options.ours or [options.model, *plain]]
        rows += [bench.theirs(name, bits) for name in ENVIRONMENTS if name in wanted]
    table(rows)
    figures = {
        f"{row['id']}_{key}": row[key] for row in rows for key in ("kl", "ppl") if not row.get("failed")
    }
    report(
        "Baselines",
        figures,
        model=options.model,
        group=options.group,
        text=options.text.name,
        tokens=windows.ids.numel(),
        context=options.context,
        calibration=f"{options.calibration.name}, {options.windows} x {CALIBRATION_CONTEXT} tokens",
        dtype="float32",
        rows=rows,
    )


@dataclass
class Bench:
    """The model, what it is measured on, and the folder of results."""

    options: argparse.Namespace
    base: ElasticModel
    windows: Windows
    reference: Reference

    def full(self) -> dict:
        return self._kept(
            "full precision", {}, lambda: self._measured(self.base.view(PrecisionPlan.full()), {})
        )

    def ours(self, source: str, bits: int) -> dict:
        """An artifact of ours, or round-to-nearest where the source has none."""
        elastic = self.base
        if source != self.options.model:
            elastic = ElasticModel.open(source, dtype=torch.float32)
        plain = elastic.artifact.manifest.method == "rtn"
        name = "RTN (ours)" if plain else f"{Path(source).name} (ours)"
        plan = PrecisionPlan.uniform(bits)

        def measure() -> dict:
            start = time.perf_counter()
            view = elastic.view(plan)
            told = {"seconds": round(time.perf_counter() - start, 1), "group": elastic.artifact.group}
            return self._measured(view, told)

        return self._kept(name, {"bits": bits, "artifact": elastic.identity}, measure)

    def theirs(self, name: str, bits: int) -> dict:
        """A tool's weights, made in its own environment, measured here."""
        options, tool = self.options, ENVIRONMENTS[name]
        ids = self._ids() if name != "hqq" else None
        settings = {
            "bits": bits,
            "group": options.group,
            "iterations": options.iterations if name == "autoround" else 0,
            "calibration": ids and hashlib.sha256(ids.read_bytes()).hexdigest(),
            "pins": list(tool.pins),
        }

        def measure() -> dict:
            weights = options.out / f"{name}-{bits}.safetensors"
            weights.unlink(missing_ok=True)
            print(f"{tool.title} at {bits} bits: quantizing", flush=True)
            python = environment(tool, options.out / "environments" / name)
            command = [python, TOOLS / tool.script, "--model", self._folder(), "--ids", self._ids()]
            for flag, value in (("--bits", bits), ("--group", options.group)):
                command += [flag, value]
            log = options.out / f"{name}-{bits}.log"
            run([*command, "--iterations", options.iterations, "--out", weights], log)
            with safe_open(weights, "pt") as file:
                told = json.loads(file.metadata()["tool"])
            result = self._measured(self.base.with_weights(load_file(weights)), told)
            weights.unlink()  # 425 MB each for SmolLM2, and the figures are what counts
            return result

        try:
            return self._kept(tool.title, settings, measure)
        except (ToolFailed, ValueError) as error:
            print(f"{tool.title} at {bits} bits failed: {error}", file=sys.stderr, flush=True)
            return {"id": f"{name}_w{bits}", "name": tool.title, "bits": bits, "failed": str(error)}

    def _kept(self, name: str, settings: dict, measure) -> dict:
        """The result of these settings on this text from --out, or measured now and put there."""
        key = {"name": name, "model": self.base.base_identity, "data": self.windows.id} | settings
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        slug = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
        path = self.options.out / f"{slug}-{settings.get('bits', 16)}-{digest}.json"
        if path.exists():
            return json.loads(path.read_text("utf-8"))
        row = {"id": f"{slug}_w{settings.get('bits', 16)}"} | key | measure()
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(row, indent=1) + "\n", "utf-8")
        os.replace(temporary, path)
        return row

    def _measured(self, view, told: dict) -> dict:
        estimate: Estimate | None = None
        for estimate in divergence(view, self.reference, self.windows):
            print(f"  {estimate.tokens} tokens: KL {estimate.kl:.4f}", end="\r", flush=True)
        print()
        return estimate.to_dict() | {"told": told}

    def _folder(self) -> Path:
        """The model's folder; the tools load it themselves."""
        name = self.options.model
        return zoo.model_folder(name) if name in zoo.MODELS else Path(name).resolve()

    def _ids(self) -> Path:
        """The calibration token ids as the tools read them."""
        options = self.options
        if options.calibration.suffix == ".safetensors":
            return options.calibration
        path = options.out / "calibration-ids.safetensors"
        text, wanted = options.calibration.read_text("utf-8"), CALIBRATION_CONTEXT * options.windows
        save_file({"ids": cut(text, self.base.tokenizer, CALIBRATION_CONTEXT, wanted).ids}, path)
        return path


def environment(tool: Tool, folder: Path) -> Path:
    """The Python of the tool's own environment, made when missing. Raises ToolFailed."""
    python = folder.absolute() / ("Scripts" if os.name == "nt" else "bin") / "python"
    stamp = folder / "installed.txt"
    if stamp.exists() and stamp.read_text("utf-8").startswith("\n".join(tool.pins)):
        return python
    print(f"Installing {', '.join(tool.pins)}", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    purelib = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    (Path(purelib.strip()) / "layer.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    log = folder.parent / f"{folder.name}-install.log"
    run([python, "-m", "pip", "install", *tool.pins], log, dict(tool.environment))
    frozen = subprocess.check_output([python, "-m", "pip", "freeze"], text=True)
    stamp.write_text("\n".join(tool.pins) + "\n\n" + frozen, "utf-8")  # written last: a cut one is made anew
    return python


def run(command: list, log: Path, extra: dict[str, str] | None = None) -> None:
    """Run to the end, off the hub, with the output in `log`; raises ToolFailed with its end."""
    settings = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | settings | (extra or {})
    with open(log, "wb") as output:
        done = subprocess.run(
            [str(part) for part in command],
            env=environ,
            cwd=log.parent,
            stdout=output,
            stderr=output,
            check=False,
        )
    if done.returncode:
        said = " ".join(log.read_text("utf-8", errors="replace").split())
        raise ToolFailed(f"exit code {done.returncode}: …{said[-LAST_WORDS:]}")


def table(rows: list[dict]) -> None:
    """For people, by bits, best first."""
    print(f"\n{'bits':>4}  {'method':<28} {'mean KL':>18} {'perplexity':>18} {'same top':>9} {'seconds':>8}")
    order = sorted(rows, key=lambda row: (-row.get("bits", 16), row.get("kl", float("inf"))))
    for row in order:
        start = f"{row.get('bits', 16):>4}  {row['name']:<28} "
        if "failed" in row:
            print(start + row["failed"])
            continue
        kl, ppl = f"{row['kl']:.4f} ± {row['kl_se']:.4f}", f"{row['ppl']:.4g} ± {row['ppl_se']:.2g}"
        seconds = row["told"].get("seconds", "")
        print(start + f"{kl:>18} {ppl:>18} {100 * row['same_top']:>7.1f} % {seconds:>8}")


if __name__ == "__main__":
    main()
