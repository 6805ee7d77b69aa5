"""The web app: pages over opened elastic models. `python app.py` starts it.

main        the command: options, loading screen, launch
space       what the hardware of a Hugging Face Space means
proxies     what the environment says of proxies, corrected
splash      the loading screen
ahead       the first page's files, fetched behind the loading screen
stubs       Gradio imported without writing type stubs
opening     the models opened, the rest of them later
serve       the pages put together over a service, and served
api         named endpoints for programs
border      what every request passes before Gradio sees it: host, size, uploads, headers, log
fair_queue  Gradio's queue, shared out between visitors
lazy        values made when first asked for
hub         models of the Hugging Face hub that one option opens
service     opened models, measurements, results; knows nothing of gradio
open_model  one opened model with all that the pages show of it
timing      how fast plans answer, measured and predicted
gate        turns at the model, shared by time
budget      the best plan for a budget, and refinement: a better one by measuring
payloads    what the browser asks for besides plans, checked
side        the two sides that are compared, and what each answers at
toast       messages for a visitor, the one place that makes them
markdown    answers as text that no markup hides in
own         what was measured on a visitor's own conversation
link        a plan as a URL
small_numbers  numbers near nothing, in words
conversation  two answers side by side
cache_pool  the key-value caches of conversations between turns
running     each visitor's newest answer, so that it can be stopped
pictures    pictures that visitors give, and what a classifier answers to them
scenes      pictures that questions are asked about
exports     plans as files of real engines: what each format makes of one, and the files
llama       llama.cpp beside our own runtime: exported files that answer and are timed
llama_side  a side of the chat that it answers
shell/      the workbench around all pages: model, plan, numbers and plot
components/ the equaliser, the numbers strip, the chart and others: most with a script and a style
pages/      the table of pages, and one module each
"""
