"""A calibrated artifact as one HTML page that can be read anywhere, with nothing fetched.

    write_report("runs/smollm2", "report.html", results=["results.json"])

page      the page: sections into the template, written whole or not at all
sections  what the page says, section by section
parts     what a section is made of: paragraphs, tables, bars, charts
figures   the charts, as plotly figures
learned   what is in the artifact's tensors, in bytes and by layer
course    how calibration went, from progress.jsonl
measured  results files, and what each of them is about; ablation: a recipe taken apart
recipe    a recipe as TOML text
words     numbers as people read them
"""


def __getattr__(name: str):
    """write_report arrives when first asked for: the command line builds its options without torch."""
    if name == "write_report":
        from .page import write_report

        return write_report
    raise AttributeError(f"module 'quept.report' has no attribute {name!r}")
