"""What the page says of an artifact, section by section. All of it is measured or read; a section without
data says in a sentence why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from quept.artifact import Artifact
from quept.calibrate.job import LOG
from quept.config import migrated
from quept.data import SOURCES
from quept.numerics.grid import group_size, quantized_bytes
from quept.plan import FULL, QUANTIZED_BITS, PrecisionPlan
from quept.runtime.sizes import BYTES_PER_FULL_WEIGHT, Sizes

from . import figures, learned
from .ablation import EXPLAINED, Ablation
from .course import Course
from .measured import BASE, OTHER, PLAIN, THIS, UNSAID, Measured, Row
from .parts import Bars, Chart, Facts, Folded, Gallery, Paragraph, Part, Section, Table
from .recipe import as_toml
from .words import by_width, duration, listed, number, plan_bits, short, size, without_folder

EVEN = 0.002  # half a step of the stored clip factors
_ABOUT = {
    THIS: "Measured with this artifact.",
    PLAIN: "Measured with round-to-nearest of the same base on the same grid, for comparison.",
    BASE: "Other tools' quantizations of the same base, for comparison.",
    UNSAID: "The file does not say which artifact it was measured with; it is taken at its word.",
    OTHER: "This was measured with another base, grid or artifact than this one.",
}


def title(artifact: Artifact) -> str:
    return f"{without_folder(artifact.base)}, {artifact.engine.title}"


def summary(artifact: Artifact, course: Course | None, quality: Mapping[str, tuple[float, float]]) -> str:
    """The page in one paragraph. quality: `{plan: (kl, kl_rtn)}` on held-out calibration data."""
    m, base = artifact.manifest, without_folder(artifact.base)
    if not artifact.engine.learned:
        return (
            f"{base} as {artifact.engine.title} makes it at any width from 2 to 8 bits: {_grouped(m.group)} "
            "share a scale, and nothing is learned, so nothing is stored beyond the base weights."
        )
    said = [
        f"{base}, calibrated once so that {len(m.layers)} linear layers run at any width from 2 to 8 bits."
    ]
    won = {plan: (kl, rtn) for plan, (kl, rtn) in quality.items() if kl < rtn and kl > 0}
    if won:
        best = max(won, key=lambda plan: won[plan][1] / won[plan][0])
        kl, rtn = won[best]
        said.append(
            f"On held-out calibration {_data(artifact)} it diverges less from full precision than plain "
            f"rounding at {listed(by_width(won))}; most at {best}, where mean KL is {short(kl)} instead of "
            f"{short(rtn)}, {short(rtn / kl)} times lower."
        )
    lost = [plan for plan, found in (course.compared if course else {}).items() if not found.kept]
    if lost:
        verb = "was" if len(lost) == 1 else "were"
        said.append(f"{listed(by_width(lost))} {verb} not better than round-to-nearest and went back to it.")
    said.append(f"What was learned takes {size(artifact.nbytes)} beyond the base weights.")
    if course and course.seconds:
        said.append(f"Calibration took {duration(sum(course.seconds.values()))}.")
    return " ".join(said)


def what_it_is(artifact: Artifact) -> Section:
    m = artifact.manifest
    entries = [
        ("base", without_folder(m.base)),
        ("fingerprint of its weights", f"{m.fingerprint[:12]}…"),
        ("method", f"{artifact.engine.title} ({m.method})"),
        ("group", f"{_grouped(m.group)} share a scale"),
        ("linear layers", f"{len(m.layers):,}"),
    ]
    if artifact.engine.learned or m.transforms:
        entries.append(("transforms", "; ".join(map(_step, m.transforms)) or "none"))
    entries += [(name, without_folder(text)) for name, text in m.provenance.items()]
    parts: list[Part] = [Facts(_distinct(entries))]
    schedule = next((layer.schedule for layer in learned.layers_of(artifact).values()), None)
    if schedule:
        counts, start = learned.layers_at(artifact), _clip_start(m.recipe)
        rows = [
            (
                f"{bits} bits",
                str(schedule.ranks(bits)) if schedule.ranks(bits) else "none",
                start.get(bits, "none"),
                f"{counts.get(bits, 0):,} of {len(m.layers):,}" if counts.get(bits) else "plain",
            )
            for bits in reversed(schedule.widths)
        ]
        head = ("width", "adapter ranks", "clip factor at start", "calibrated layers")
        parts.append(Table("What each width uses", head, rows))
    return Section("What it is", parts)


def quality_section(
    artifact: Artifact, course: Course | None, quality: Mapping[str, tuple[float, float]]
) -> Section:
    """On held-out calibration data, from the manifest."""
    section = Section("Quality against round-to-nearest")
    if not quality:
        why = (
            "The manifest holds no comparison with round-to-nearest."
            if artifact.engine.learned
            else "Nothing is learned in this artifact, so there is nothing to compare with rounding."
        )
        section.parts.append(Paragraph(why))
        return section
    plans = by_width(quality)
    section.parts.append(Paragraph(_held_out(artifact)))
    ours, plain = ({p: quality[p][i] for p in plans} for i in range(2))
    summary = "; ".join(f"{p}: {short(ours[p])} against {short(plain[p])}" for p in plans)
    section.parts.append(
        Chart(
            "Mean KL from full precision; lower is better",
            figures.quality(plans, ours, plain),
            f"Mean KL. {summary}",
        )
    )
    rows = [(p, short(ours[p]), short(plain[p]), _gain(ours[p], plain[p], p, course)) for p in plans]
    head = ("plan", "mean KL", "round-to-nearest", "how much lower")
    section.parts.append(Table("Mean KL from full precision", head, rows, words=(3,)))
    return section


def measured_section(files: list[Measured]) -> Section:
    section = Section("Measured quality")
    if not files:
        section.parts.append(Paragraph("No results files were given (--results), so nothing is shown here."))
    for found in files:
        conditions = "; ".join(f"{name} {value}" for name, value in found.conditions)
        section.parts.append(
            Paragraph(
                f"{found.file}: {_ABOUT[found.subject]}"
                + (f" Conditions: {conditions}." if conditions else "")
            )
        )
        plans = by_width(found.rows)
        uniform = [p for p in plans if plan_bits(p)]
        ours, plain, errors = (
            {p: v for p in uniform if (v := getattr(found.rows[p], entry)) is not None and v > 0}
            for entry in ("kl", "kl_rtn", "kl_se")
        )
        if ours:
            names = {THIS: "this artifact", UNSAID: "calibrated", PLAIN: "as measured"}
            figure = figures.quality(
                uniform, ours, plain, names.get(found.subject, "as measured"), errors if errors else None
            )
            text = "; ".join(f"{p}: {short(ours[p])}" for p in uniform if p in ours)
            section.parts.append(
                Chart(
                    "Mean KL from full precision; lower is better",
                    figure,
                    f"Mean KL, {found.file}. {text}",
                )
            )
        section.parts.append(_measured_table(found, plans))
    return section


def ablation_section(ablation: Ablation) -> Section:
    section = Section("What each part of a calibration wins")
    section.parts.append(Paragraph(f"{EXPLAINED} Conditions: {ablation.note}."))
    section.parts.append(Table("A recipe taken apart", ablation.head, ablation.cells))
    return section


def course_section(artifact: Artifact, course: Course | None) -> Section:
    section = Section("Course of the calibration")
    if course is None or course == Course():
        why = f"no {LOG} lies beside the artifact" if course is None else f"its {LOG} records no step"
        section.parts.append(Paragraph(f"Nothing is known of how the calibration went: {why}."))
        return section
    series = course.losses()
    if series:
        section.parts.append(
            Chart(
                "End-to-end loss of every step (mean KL on training text) and its running mean",
                figures.losses(series),
                "Loss by step for each plan; the table below gives its beginning and end.",
            )
        )
        rows = [(p, f"{len(v):,}", *map(short, _ends(v))) for p, (_, v) in series.items()]
        rows.sort(key=lambda row: by_width(series).index(row[0]))
        head = ("plan", "steps", "first tenth", "last tenth")
        section.parts.append(Table("Mean loss over the first and the last tenth of the steps", head, rows))
    if course.blocks:
        kept = sum(loss.kept for loss in course.blocks.values())
        section.parts.append(
            Chart(
                "Loss of each block before (open, dotted) and after (filled) its tuning",
                figures.blocks(course.blocks),
                "Loss by block; the table below gives the same numbers.",
            )
        )
        section.parts.append(Paragraph(f"The tuning was kept in {kept} of {len(course.blocks)} blocks."))
        section.parts.append(_blocks_table(course))
    lost = {plan: found for plan, found in course.compared.items() if not found.kept}
    if lost:
        back = (f"{p} (KL {short(lost[p].kl)}, plain {short(lost[p].kl_rtn)})" for p in by_width(lost))
        section.parts.append(Paragraph(f"Back to round-to-nearest, which was no worse: {listed(back)}."))
    elif course.compared:
        section.parts.append(Paragraph("No width had to go back to round-to-nearest."))
    if course.seconds:
        rows = [(name, seconds, duration(seconds)) for name, seconds in course.seconds.items()]
        whole = duration(sum(course.seconds.values()))
        section.parts.append(Bars(f"Time of each stage, {whole} in all", rows))
    return section


def sizes_section(artifact: Artifact, sizes: Sizes | None) -> Section:
    section, shapes = Section("Sizes"), learned.shapes(artifact)
    kinds = learned.bytes_by_kind(artifact)
    if kinds:
        rows = [(kind, float(count), size(count)) for kind, count in kinds.items()]
        section.parts.append(Bars(f"Beyond the base weights: {size(artifact.nbytes)}, by kind", rows))
    if shapes and kinds.get("adapters"):
        weights = sum(rows * columns for rows, columns in shapes.values())
        share = artifact.nbytes / (BYTES_PER_FULL_WEIGHT * weights)
        section.parts.append(
            Paragraph(
                f"That is {100 * share:.3g} % of the {size(BYTES_PER_FULL_WEIGHT * weights)} of the same "
                "layers in 16 bits, for all widths together. One plan alone ships none of it: adapters and "
                "clips are merged into the weights before they are rounded."
            )
        )
    if sizes:
        plans = {bits: PrecisionPlan.uniform(bits) for bits in (FULL, *reversed(QUANTIZED_BITS))}
        rows = [
            (plan.name, size(sizes.deploy(plan)), f"{sizes.bits_per_parameter(plan):.2f}")
            for plan in plans.values()
        ]
        section.parts.append(
            Table(
                "The whole model, if one plan alone were shipped", ("plan", "size", "bits / parameter"), rows
            )
        )
    elif shapes:
        section.parts.append(_layers_table(shapes, artifact.group))
        section.parts.append(
            Paragraph(
                "Embeddings, norms and head come on top; --with-sizes opens the base and counts them too."
            )
        )
    else:
        why = "the artifact holds no adapter in every layer to read shapes off"
        if not artifact.engine.learned:
            why = "this artifact stores nothing beyond the base weights"
        section.parts.append(
            Paragraph(f"No size at a width is known: {why}; --with-sizes opens the base for it.")
        )
    return section


def clips_section(artifact: Artifact) -> Section:
    section, found = Section("Clip factors"), learned.clip_means(artifact)
    if not found:
        section.parts.append(Paragraph("No width of this artifact clips the range of its weights."))
        return section
    section.parts.append(
        Paragraph(
            "How much of each group's range the grid covers at its lower and its upper end: 1 is all of it, "
            "less gives the remaining values finer steps. Means over the groups of a layer."
        )
    )
    rows = []
    for means in found:
        low, high = means.values(0), means.values(1)
        cells = (_mean(low), _mean(high), min(low + high), max(low + high))
        rows.append((f"{means.bits} bits", *(f"{x:.3f}" for x in cells)))
    head = ("width", "lower end", "upper end", "smallest layer", "largest layer")
    section.parts.append(Table("Mean clip factors", head, rows))
    even = [means for means in found if means.spread < EVEN]
    charts = [
        Chart(
            f"{means.bits} bits, {learned.ENDS[end]} end",
            figures.clips(means, end),
            f"Heat map of mean clip factors by role and block; mean {_mean(means.values(end)):.3f}.",
        )
        for means in found
        for end in range(2)
        if means not in even
    ]
    if charts:
        section.parts.append(Gallery(charts))
    if even:
        bits = listed(means.bits for means in even)
        section.parts.append(
            Paragraph(f"At {bits} bits all layers clip alike to within {EVEN:.3g}, so no map is drawn.")
        )
    return section


def recipe_section(artifact: Artifact) -> Section:
    section, recipe = Section("Recipe"), artifact.manifest.recipe
    if not recipe:
        section.parts.append(Paragraph("The manifest holds no recipe."))
        return section
    if recipe.get("note"):
        section.parts.append(Paragraph(str(recipe["note"])))
    section.parts.append(Folded(f"All settings of {recipe.get('name') or 'the recipe'}", as_toml(recipe)))
    return section


def held_out_quality(artifact: Artifact) -> dict[str, tuple[float, float]]:
    """`{plan: (kl, kl_rtn)}` of the manifest, where both are numbers."""
    rows = {
        plan: (number(row.get("kl")), number(row.get("kl_rtn")))
        for plan, row in artifact.manifest.quality.items()
    }
    return {plan: (kl, rtn) for plan, (kl, rtn) in rows.items() if kl is not None and rtn is not None}


def _measured_table(found: Measured, plans: list[str]) -> Table:
    columns = {
        "mean KL": lambda row: row.kl is not None and short(row.kl, row.kl_se),
        "KL, plain": lambda row: row.kl_rtn is not None and short(row.kl_rtn),
        "perplexity": lambda row: row.ppl is not None and short(row.ppl, row.ppl_se),
        "perplexity, plain": lambda row: row.ppl_rtn is not None and short(row.ppl_rtn),
    }
    shares = {m.label: m.name for p in plans for m in found.rows[p].metrics if m.unit == "share"}
    columns |= {label.lower(): partial(_share, name) for label, name in shares.items()}
    cells = {name: [cell(found.rows[p]) or short(None) for p in plans] for name, cell in columns.items()}
    shown = {name: column for name, column in cells.items() if set(column) != {short(None)}}
    rows = [(p, *row) for p, row in zip(plans, zip(*shown.values(), strict=True), strict=True)]
    return Table(f"Results in {found.file}", ("plan", *shown), rows)


def _share(name: str, row: Row) -> str:
    return "".join(
        f"{100 * m.value:.1f} ({100 * m.low:.1f} to {100 * m.high:.1f}) %"
        for m in row.metrics
        if m.name == name
    )


def _blocks_table(course: Course) -> Table:
    groups = list(dict.fromkeys(g for b in course.blocks.values() for g in (*b.before, *b.after)))
    rows = [
        (
            name,
            "yes" if loss.kept else "no",
            *(f"{_two(loss.before.get(g))} → {_two(loss.after.get(g))}" for g in groups),
        )
        for name, loss in course.blocks.items()
    ]
    return Table("Loss before → after, by block", ("block", "kept", *groups), rows)


def _two(x: float | None) -> str:
    """Two digits: these columns are many."""
    return short(None) if x is None else f"{x:.2g}"


def _layers_table(shapes: Mapping[str, tuple[int, int]], group: int | str) -> Table:
    weights = sum(rows * columns for rows, columns in shapes.values())
    table = [("16 bits", size(BYTES_PER_FULL_WEIGHT * weights), "16.00")]
    for bits in reversed(QUANTIZED_BITS):
        count = sum(
            quantized_bytes(rows, columns, bits, group_size(columns, group))
            for rows, columns in shapes.values()
        )
        table.append((f"{bits} bits", size(count), f"{8 * count / weights:.2f}"))
    head = ("width", "size", "bits / weight")
    return Table("The linear layers, if one width alone were shipped, scales included", head, table)


def _gain(kl: float, rtn: float, plan: str, course: Course | None) -> str:
    found = course.compared.get(plan) if course else None
    if found and not found.kept:
        return f"calibrated {short(found.kl)}: back to plain"
    if kl == rtn or kl <= 0:
        return "the same"
    if kl > rtn:
        return f"{short(kl / rtn)} times higher"
    return f"{short(rtn / kl)} times lower"


def _held_out(artifact: Artifact) -> str:
    recipe = artifact.manifest.recipe
    stage = recipe.get("end_to_end") or recipe.get("block_wise") or {}
    count, context = recipe.get("held_out"), stage.get("context") if isinstance(stage, dict) else None
    data = _data(artifact)
    where = f"held-out calibration {data}"
    if isinstance(count, int) and isinstance(context, int):
        many = f"{count} × {context} tokens" if data == "text" else f"{count:,}"
        where += f" ({many} that training did not read)"
    few = "few tokens, so" if data == "text" else "few, so"
    return f"Mean KL divergence from full precision in nats, on {where}: {few} a guide, not a benchmark."


def _data(artifact: Artifact) -> str:
    data = migrated(artifact.manifest.recipe).get("data")
    kind = data.get("kind") if isinstance(data, dict) else "text"
    return SOURCES[kind].noun if kind in SOURCES else "data"


def _clip_start(recipe: Mapping) -> dict[int, str]:
    """Factor each width's clips start from, sigmoid of the recipe's logit."""
    clip = recipe.get("clip")
    start = clip.get("start") if isinstance(clip, dict) else None
    if not isinstance(start, dict):
        return {}
    logits = {int(bits): number(x) for bits, x in start.items() if str(bits).isdecimal()}
    return {
        bits: f"{1 / (1 + math.exp(-x)):.3f}" for bits, x in logits.items() if x is not None and abs(x) < 50
    }


def _step(step: Mapping) -> str:
    """ "rotation (seed 0, heads yes, online no)"."""
    shown = {True: "yes", False: "no"}

    def value(x: object) -> str:
        if isinstance(x, bool):
            return shown[x]
        return ", ".join(map(str, x)) if isinstance(x, list) else str(x)

    settings = ", ".join(f"{name} {value(x)}" for name, x in step.items() if name != "kind")
    return f"{step.get('kind')} ({settings})" if settings else str(step.get("kind"))


def _grouped(group: int | str) -> str:
    named = {"row": "the weights of a row", "auto": "the largest of 128, 64 or 32 columns that divides a row"}
    return named.get(group, f"{group} columns")  # type: ignore[arg-type]


def _distinct(entries: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A name that comes twice says where the second comes from."""
    seen: set[str] = set()
    result = []
    for name, text in entries:
        result.append((f"provenance of the {name}" if name in seen else name, text))
        seen.add(name)
    return result


def _ends(values: list[float]) -> tuple[float, float]:
    tenth = max(1, len(values) // 10)
    return _mean(values[:tenth]), _mean(values[-tenth:])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
