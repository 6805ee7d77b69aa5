"""Browser components: gr.HTML subclasses, each with its script and style as files beside it."""
