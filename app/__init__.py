"""The web app: pages over one opened elastic model. `python app.py` starts it.

main        the command: options, loading screen, launch
proxies     what the environment says of proxies, made harmless
service     opened models, measurements, results; knows nothing of gradio
gate        turns between visitors
link        a plan as a URL
conversation  two answers side by side
pictures    pictures that visitors give, and what a classifier answers to them
scenes      pictures that questions are asked about
components/ the equaliser, the numbers strip, the chart: each with its script and style beside it
pages/      the table of pages, and one module each
"""
