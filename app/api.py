"""The named endpoints for programs: what a page does, without the page, through `gradio_client`.

They take and give JSON, and are held to what holds for pages: the same gate, admission, lengths and lines. A
model is one of `/models`; a plan is a name ("W4", "best 5 bits") or the text of a plan file. Everything else
that the app answers to is private.
"""

import base64
import binascii
import json
from contextlib import closing
from typing import Any

import gradio as gr

from app.budget import sentence, solved
from app.conversation import chat
from app.pages.chat_answers import LONGEST_PROMPT, Ask
from app.pictures import Classifier, read_sent
from app.service import Service
from app.toast import refusal
from quept.evaluate import summarize_scores
from quept.plan import PrecisionPlan

AT_ONCE = {"concurrency_limit": 16}


def expose(service: Service) -> None:
    """Draws nothing: adds the endpoints to the Blocks around it."""

    def known(model: str, kind: str = "") -> str:
        if model not in service.cards:
            raise ValueError(f"no model is called {model!r:.80}; /models lists them")
        if kind and service.cards[model].kind != kind:
            raise ValueError(f"{model} is no {kind} model; /models says what each is")
        return model

    def plan_of(model: str, plan: Any) -> PrecisionPlan:
        """A name, or a plan file as text or as the object that it holds."""
        text = json.dumps(plan) if isinstance(plan, dict) else str(plan)
        if not text.lstrip().startswith("{"):
            return service.plan(model, text)
        found = PrecisionPlan.from_json(text, service.models[model].origin.models)
        return service.plan_of(model, service.plan_json_of(model, found))

    def models() -> list[dict]:
        """The models that are open here: name, title and kind ("language", "vision", "vision-language")."""
        cards = service.cards.items()
        return [{"name": name, "title": card.title, "kind": card.kind} for name, card in cards]

    def plan_for_budget(model: str, budget: str) -> dict:
        """The plan with the least predicted harm within a budget ("75 MB", "50 %", "4.5 bits"): a plan file
        as JSON, its bytes, and the budget in bytes."""
        opened = service.opened[known(model)]
        found, limit = solved(opened, {"budget": budget})
        plan = found.allocation.plan
        file = json.loads(plan.to_json(opened.elastic.origin.models[0]))
        size = opened.elastic.sizes.deploy(plan)
        return {"plan": file, "bytes": size, "budget": limit, "note": found.describe()}

    def measure(model: str, plan: Any, visitor: str, task: str) -> dict:
        """Metrics of a plan over all of the data of a task ("text", "choice", ...; the model's first where
        none is given), each with its interval and what full precision has; bytes, and the conditions in
        words."""
        wanted = plan_of(known(model), plan)
        if task and task not in (offered := service.opened[model].tasks):
            raise ValueError(f"{model} is not measured by {task!r}: give {' or '.join(offered)}")
        states = list(service.measure(model, wanted, visitor, task))
        state = states[-1] if states else {}
        if state.get("status") not in ("done", "stored"):
            raise ValueError(state.get("message") or "a newer measurement of yours has ended this one")
        numbers = {key: state[key] for key in ("metrics", "conditions")}
        return {"plan": wanted.name, "bytes": state["deploy_bytes"], **numbers}

    def generate(
        model: str, plan: Any, message: str, max_tokens: int, temperature: float, seed: int, visitor: str
    ) -> dict:
        """An answer to one message at a plan: text, tokens, tokens a second, and how far its tokens are from
        full precision."""
        settings = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        sampling = Ask(known(model, "language"), ("", ""), None, **settings).sampling()
        if len(message) > LONGEST_PROMPT:
            raise ValueError(f"a message has at most {LONGEST_PROMPT:,} characters")
        side, elastic = plan_of(model, plan), service.models[model]
        histories = [[{"role": "user", "content": message}]]
        frames = chat(
            elastic, [side], histories, sampling, "", service.gate, service.admission, visitor=visitor
        )
        with closing(frames):
            *_, frame = frames
        (answer,) = frame.answers
        if answer.state == "error":
            raise ValueError(answer.error)
        far = summarize_scores(answer.scores)
        return {
            "plan": side.name,
            "text": answer.text,
            "tokens": answer.tokens,
            "tokens_per_second": answer.tokens_per_second,
            "kl": far and far.kl,
            "same_top": far and far.same_top,
        }

    def classify(model: str, plan: Any, picture: str) -> dict:
        """The five likeliest classes of a picture (base64 of a PNG or JPEG, or a data URL), [[class, share],
        ...]."""
        elastic = service.models[known(model, "vision")]
        try:
            data = base64.b64decode(picture.rpartition(",")[2], validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("the picture is no base64 of a file") from None
        classifier, side = Classifier(elastic, None), plan_of(model, plan)
        with service.gate:
            own = classifier.own(read_sent(data, elastic.vision.channels), "sent")
        answer = classifier.answers(side, [own], lambda: service.gate)[own.id]
        labels = classifier.labels
        return {"plan": side.name, "classes": [[labels[i], share] for i, share in answer.best()]}

    def in_words(fn, *values) -> Any:
        """What fn gives; an error of what was asked for as a sentence."""
        try:
            return fn(*values)
        except (ValueError, KeyError, FloatingPointError) as error:
            raise refusal(sentence(error)) from None

    def api_models() -> list[dict]:
        return models()

    def api_plan(model: str, budget: str) -> dict:
        return in_words(plan_for_budget, model, budget)

    def api_measure(model: str, plan: Any, request: gr.Request, task: str = "") -> dict:
        return in_words(measure, model, plan, f"{request.session_hash} api", task)

    def api_generate(
        model: str,
        plan: Any,
        message: str,
        request: gr.Request,
        max_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> dict:
        settings = (max_tokens, temperature, seed, f"{request.session_hash} api")
        return in_words(generate, model, plan, message, *settings)

    def api_classify(model: str, plan: Any, picture: str) -> dict:
        return in_words(classify, model, plan, picture)

    gr.api(api_models, api_name="models", api_description=models.__doc__)
    gr.api(api_plan, api_name="plan_for_budget", api_description=plan_for_budget.__doc__, **AT_ONCE)
    running = AT_ONCE | {"concurrency_id": "measure"}
    gr.api(api_measure, api_name="measure", api_description=measure.__doc__, **running)
    running = AT_ONCE | {"concurrency_id": "chat"}
    gr.api(api_generate, api_name="generate", api_description=generate.__doc__, **running)
    gr.api(api_classify, api_name="classify", api_description=classify.__doc__, **AT_ONCE)
