"""Browser components: a Widget is a gr.HTML with its script and style as files beside it."""
