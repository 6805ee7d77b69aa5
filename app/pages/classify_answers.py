"""What the Classify page says of a picture: both precisions' answers, which region decides, and the answers
that a plan changes.

Plain functions and generators: they take a `PageContext` (what all visitors share) and values.
"""

from __future__ import annotations

import html
import logging
import time
from collections.abc import Iterator, Mapping
from functools import partial

import gradio as gr

from app.budget import sentence
from app.components.chart import Chart
from app.components.equalizer import check_plan
from app.components.pictures import Pictures
from app.link import CLASSIFY
from app.pages.context import PageContext, precision_menu
from app.pictures import Answer, Picture, read_upload, remove_upload
from app.service import PlanJson, Service
from app.side import EQUALIZER, plainly
from app.toast import shown, warn
from quept.evaluate import ImageError, wilson
from quept.plan import PrecisionPlan

logger = logging.getLogger(__name__)

SIDES = ("left", "right")
FULL_PRECISION = "full precision"
INPUT = "classify-picture"
CLASSES_SHOWN = 40
CHANGED_SHOWN = 24
FAILED = "The pictures could not be classified. Try another plan, or reload the page."
TAKEN = "JPEG, PNG, WebP, GIF, BMP and TIFF files of up to 10 MB are taken."
FETCH_S = 1.0  # in which a browser has fetched the picture that it has just sent
UNSURE = 0.25  # a likeliest class below this share, at full precision, says that nothing fits


def look(context: PageContext, model: str, choices: tuple[str, str], request: Mapping, visitor: str) -> tuple:
    """What the plans of both sides answer to the page's pictures, the chosen one timed: for the row of
    pictures and the two sides. Whatever goes wrong is said in words."""
    turn = request.get("turn")
    try:
        classifier = context.held[model]
        plan_json = check_plan(request.get("plan"), context.service.describe(model))
        chosen = _chosen(context, model, request.get("id"), visitor)
        pictures = _pictures(context, model, visitor)
        if chosen and all(picture.id != chosen.id for picture in pictures):
            pictures = [chosen, *pictures]
        plans = [context.service.plan(model, choice, plan_json) for choice in choices]
        full, own = PrecisionPlan.full(), context.service.plan_of(model, plan_json)
        key = partial(PrecisionPlan.key, layers=classifier.elastic.layers)
        found: dict[str, dict[str, Answer]] = {}
        for plan in (full, own, *plans):
            row = pictures if plan is full or plan is own else []
            timed = chosen if plan not in (full, own) or plan in plans else None
            known = found.setdefault(key(plan), {})
            known |= classifier.answers(plan, row, lambda: context.service.gate, timed)
    except (ValueError, KeyError, FloatingPointError) as error:
        return Pictures(answers={"turn": turn, "error": sentence(error)}), gr.skip(), gr.skip()
    except Exception:
        logger.exception("pictures could not be classified")
        return Pictures(answers={"turn": turn, "error": FAILED}), gr.skip(), gr.skip()
    theirs, ours = found[key(full)], found[key(own)]
    sure = float(theirs[chosen.id].shares.max()) if chosen else 1.0
    labels = classifier.labels
    rows = {p.id: [*_first(theirs[p.id], labels), *_first(ours[p.id], labels)] for p in pictures}
    sides = [_status(context, model, plan, None) for plan in plans]
    if chosen:
        given = [found[key(plan)][chosen.id] for plan in plans]
        sides = [
            _status(context, model, plan, chosen, given[i], given[1 - i], plans[1 - i], sure)
            for i, plan in enumerate(plans)
        ]
        sides[1]["note"] = ""  # what is to say of the picture is said once
    return Pictures(answers={"turn": turn, "rows": rows}), *sides


def regions(
    context: PageContext,
    model: str,
    choices: tuple[str, str],
    identity: str | None,
    plan_json: PlanJson,
    visitor: str,
) -> tuple[str, str]:
    """Which regions of the chosen picture decide at the plan of each side, as two figures."""
    try:
        chosen = _chosen(context, model, identity, visitor)
        if chosen is None:
            return ("<p>Choose a picture first.</p>",) * 2
        plans = [context.service.plan(model, choice, plan_json) for choice in choices]
        return tuple(_region(context, model, plan, chosen) for plan in plans)
    except (ValueError, KeyError, FloatingPointError) as error:
        return (f"<p>{html.escape(sentence(error))}</p>",) * 2


def _region(context: PageContext, model: str, plan: PrecisionPlan, chosen: Picture) -> str:
    classifier = context.held[model]
    top, source = classifier.regions(plan, chosen, lambda: context.service.gate)
    label = html.escape(_short(classifier.labels[top]))
    words = f"What makes it {label}: the share falls where the bright parts are covered"
    return f'<figure><img src="{source}" alt="{words}"><figcaption>{words}.</figcaption></figure>'


def own_pictures(context: PageContext, model: str, plan_json: PlanJson, visitor: str) -> Chart:
    """What the plan and full precision answer to the visitor's own pictures, as a point of the plot; none
    where there are no pictures."""
    classifier, pictures = context.held[model], context.album.of(visitor, model)
    own, sizes = context.service.plan_of(model, plan_json), context.service.models[model].sizes
    if not pictures:
        return Chart(own=[])
    plans = (PrecisionPlan.full(), own)
    theirs, ours = (classifier.answers(plan, pictures, lambda: context.service.gate) for plan in plans)
    pairs = [(theirs[picture.id], ours[picture.id]) for picture in pictures]
    same = sum(one.top == other.top for one, other in pairs)
    low, high = wilson(same, len(pairs))
    kl = sum(one.divergence(other) for one, other in pairs) / len(pairs)
    metrics = {"same_top": same / len(pairs), "same_top_low": low, "same_top_high": high, "kl": kl}
    where = {"bytes": sizes.deploy(own), "bits_per_param": sizes.bits_per_parameter(own)}
    count = f"{len(pairs)} picture" + ("s" if len(pairs) > 1 else "")
    return Chart(own=[{"id": "pictures", "label": f"Your {count}, {own.name}", **where, **metrics}])


def given(context: PageContext, model: str, path: str | None, visitor: str) -> Iterator[tuple]:
    """A picture from the visitor: it joins the row, and the input is empty again; then its file goes. Not at
    once: the browser may just be fetching it, to show it for the moment that it takes to read it."""
    if not path:
        yield gr.skip(), gr.skip()
        return
    try:
        yield _taken(context, model, path, visitor)
        time.sleep(FETCH_S)
    finally:
        remove_upload(path)


def _taken(context: PageContext, model: str, path: str, visitor: str) -> tuple:
    classifier = context.held[model]
    try:
        with context.service.gate:
            picture = read_upload(path, classifier.elastic.vision.channels)
            own = classifier.own(picture, "Your picture")
    except ImageError as error:
        warn(f"{sentence(error)} {TAKEN}", title="Picture not taken")
        return None, gr.skip()
    except Exception:
        logger.exception("a picture could not be prepared")
        warn("This picture could not be prepared for the model. Try another one.", title="Picture not taken")
        return None, gr.skip()
    classifier.forget(context.album.add(visitor, model, own))
    return None, row(context, model, visitor, own.id)


def row(context: PageContext, model: str, visitor: str = "", selected: str | None = None) -> dict:
    """The visitor's own pictures and the examples, as Pictures shows them."""
    pictures = _pictures(context, model, visitor)
    items = [_item(picture, context.held[model].labels) for picture in pictures]
    known = selected if selected in {item["id"] for item in items} else None
    if known is None and selected and selected.startswith("example:"):  # from the row of changed answers
        try:
            chosen = _item(_chosen(context, model, selected, visitor), context.held[model].labels)
            items = [chosen, *items[:-1]]
            known = selected
        except ImageError:
            known = None
    return {
        "title": "Pictures",
        "items": items,
        "live": True,
        "paste_into": INPUT,
        "selected": known or (items[0]["id"] if items else None),
        "empty": "No pictures lie beside this model: give one of your own.",
    }


def results(context: PageContext, model: str, plan_json: PlanJson) -> tuple:
    """What the plan on the workbench does to the labelled pictures, once measured: for the table of flips and
    the row of changed answers."""
    plan = context.service.plan_of(model, plan_json)
    state = context.service.state(model, plan)
    return _flips(context, model, plan, state), _changed(context, model, plan, state)


def switch(context: PageContext, query: Mapping | None, model: str, visitor: str) -> tuple:
    """Another of the operator's classifiers: its sides, pictures and title; of the model of the address
    (`query`) with the picture that it names."""
    offered = choices(context.service, model)
    sides = zip(SIDES, starting(), strict=True)
    menus = [precision_menu(CLASSIFY, side, offered, choice) for side, choice in sides]
    shown = enter(context, query, model, visitor)
    pictures = shown if "items" in shown else row(context, model, visitor)
    return *menus, Pictures(pictures), heading(context.service, model)


def enter(context: PageContext, query: Mapping | None, model: str, visitor: str):
    """The page is opened: the pictures, with the one that its address says the first time (`query`, else
    None)."""
    number = str((query or {}).get("i", ""))
    here = query and query.get("p") == CLASSIFY and query.get("m", model) == model
    linked = here and number.isdecimal() and len(number) < 8
    return (
        row(context, model, visitor, f"example:{number}") if linked and model in context.held else gr.skip()
    )


def forget(context: PageContext, visitor: str) -> None:
    """The visitor has left: their pictures and what was answered to them go."""
    gone = context.forget(visitor)
    for classifier in context.held.made.values():
        classifier.forget(gone)


# What the page shows


def choices(service: Service, model: str) -> list[tuple[str, str]]:
    plans = service.opened[model].named_plans
    named = [(_upper(plainly(plan, embeddings=False)), name) for name, plan in plans.items()]
    return [("Your plan", EQUALIZER), *named]


def starting() -> tuple[str, str]:
    """Full precision against the visitor's plan."""
    return FULL_PRECISION, EQUALIZER


def _pictures(context: PageContext, model: str, visitor: str) -> list[Picture]:
    classifier = context.held[model]
    return [*context.album.of(visitor, model), *map(classifier.example, classifier.examples)]


def _chosen(context: PageContext, model: str, identity: object, visitor: str) -> Picture | None:
    """The picture of this id, if it is an example or the visitor's own; ImageError with a sentence if not."""
    if identity is None:
        return None
    kind, _, number = str(identity)[:64].partition(":")
    if kind == "example" and number.isdecimal():
        return context.held[model].example(int(number))
    for picture in context.album.of(visitor, model):
        if picture.id == identity:
            return picture
    raise ImageError("this picture is not here any more: choose another one")


def _item(picture: Picture, labels: tuple[str, ...]) -> dict:
    return {
        "id": picture.id,
        "name": picture.name,
        "source": picture.source,
        "seen": picture.seen,
        "label": None if picture.label is None else _short(labels[picture.label]),
        "note": picture.note,
    }


def _first(answer: Answer, labels: tuple[str, ...]) -> tuple[str, float]:
    return _short(labels[answer.top]), float(answer.shares[answer.top])


def _status(
    context: PageContext,
    model: str,
    plan: PrecisionPlan,
    chosen: Picture | None,
    answer: Answer | None = None,
    other: Answer | None = None,
    beside: PrecisionPlan | None = None,
    sure: float = 1.0,
) -> dict:
    """One side, as SideStatus shows it. sure: the share of full precision's likeliest class."""
    elastic, labels = context.service.models[model], context.held[model].labels
    ms = answer and answer.ms
    facts = [
        [
            "Deploy",
            _megabytes(elastic.sizes.deploy(plan)),
            "Bytes of the model if it were shipped at this plan alone",
        ],
        [
            "Per picture",
            "–" if ms is None else f"{ms:.1f} ms",
            "Time of a forward pass of this one picture; fewer bits save memory, not time on this page",
        ],
        [
            "Bits",
            f"{elastic.sizes.bits_per_parameter(plan):.2f}",
            "Bits per parameter, scales included",
        ],
    ]
    if answer is None or chosen is None:
        return {"state": "idle", "words": _upper(plan.name), "facts": facts}
    top, share = _first(answer, labels)
    right = chosen.label is not None and (" ✓" if chosen.label == answer.top else " ✗")
    bars = [
        [_short(labels[number]), value, _points(value - float(other.shares[number]))]
        for number, value in answer.best()
    ]
    parted = answer.top != other.top
    line = f"{_upper(beside.name)} says {_short(labels[other.top])}" if parted else f"Both sides say {top}"
    return {
        "state": "done",
        "words": f"{_upper(plan.name)}: {top}{right or ''}",
        "line": f"The answers differ: {line}" if parted else line,
        "parted": parted,
        "note": "" if chosen.label is not None else _outside(chosen, labels, sure),
        "bars": bars,
        "facts": facts,
    }


def _outside(chosen: Picture, labels: tuple[str, ...], sure: float) -> str:
    """What a share means for a picture that nobody has labelled."""
    if chosen.hint:
        return chosen.hint
    if sure < UNSURE and len(labels) > 10:
        return (
            f"Full precision itself gives no class more than {100 * sure:.0f} %: this may show none of the "
            f"{len(labels):,} things that it knows, several of them, or be no photograph"
        )
    few = ", ".join(map(_short, labels[:10])) if len(labels) <= 10 else f"{len(labels):,} classes"
    return (
        f"It can only answer with what it was taught, whatever a picture shows, however sure it sounds: {few}"
    )


def _points(change: float) -> str:
    """How far a share lies above the other side's, in points; nothing where nobody would see it."""
    return "" if abs(change) < 0.0005 else f"{'+' if change > 0 else '−'}{100 * abs(change):.1f}"


def _flips(context: PageContext, model: str, plan: PrecisionPlan, state: Mapping) -> dict:
    estimate, labels = state.get("estimate"), context.held[model].labels
    if not estimate:
        words = "No labelled pictures lie beside this model." if state["status"] == "idle" else "Measuring…"
        return {"rows": [], "empty": words}
    if not estimate.get("labelled", True):
        same, count = round(estimate["same_top"] * estimate["images"]), estimate["images"]
        agree = (
            f"{_upper(plan.name)} answers {same:,} of {count:,} crops of photographs as full precision does"
        )
        return {
            "rows": [],
            "empty": f"{agree}. Nobody has labelled them: whether that is right is not known.",
        }
    rows = [
        [_short(labels[int(number)]), c["images"], c["right_ref"], c["right"], c["flips"]]
        for number, c in estimate["classes"].items()
    ]
    total = ["All", *(sum(row[i] for row in rows) for i in range(1, 5))]
    kept = rows
    if len(rows) > CLASSES_SHOWN:
        kept = sorted((r for r in rows if r[4]), key=lambda r: -r[4])[:CLASSES_SHOWN]
    lost, gained = estimate["lost"], estimate["gained"]
    words = (
        f"{_upper(plan.name)} against full precision: {total[4]:,} of {total[1]:,} answers changed; "
        f"{lost:,} became wrong, {gained:,} became right"
    )
    return {"rows": kept, "left": len(rows) - len(kept), "total": total, "words": words}


def _changed(context: PageContext, model: str, plan: PrecisionPlan, state: Mapping) -> dict:
    """Pictures of the measured ones whose answer this plan changes, as Pictures shows them."""
    estimate, classifier = state.get("estimate"), context.held[model]
    title = f"Answers that {plan.name} changes"
    if estimate and classifier.images is None:
        return {"title": "", "items": [], "empty": ""}  # nobody labelled them: there is nothing to list
    if not estimate:
        return {"title": "Changed answers", "items": [], "empty": "Nothing was measured yet."}
    labels = classifier.labels
    items = []
    for number, theirs, ours in estimate["changed"][:CHANGED_SHOWN]:
        item = _item(classifier.example(number), labels)
        items.append(item | {"words": f"{_short(labels[theirs])} → {_short(labels[ours])}"})
    flips = round((1 - estimate["same_top"]) * estimate["images"])
    shown = f"{flips:,} of {estimate['images']:,} pictures"
    if flips > len(items):
        shown += f"; the first {len(items)}"
    empty = f"None: it answers all {estimate['images']:,} pictures as full precision does."
    return {"title": title, "items": items, "words": shown, "empty": empty}


def _short(label: str) -> str:
    """ "tench, Tinca tinca" -> "tench"."""
    return label.partition(",")[0]


def _upper(words: str) -> str:
    return words[:1].upper() + words[1:]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size < 1e7 else f"{size / 1e6:.1f} MB"


def heading(service: Service, model: str) -> str:
    """What is classified, as Markdown."""
    elastic = service.models[model]
    count = len(elastic.vision.labels)
    return f"**{shown(elastic.title)}** · {count:,} classes · {shown(service.opened[model].conditions())}"
