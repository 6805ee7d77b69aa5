"""Browser components: a Widget is a gr.HTML with its script and style as files beside it.

widget         what they have in common; dom.js: what their scripts have
equalizer      the faders, and the map of all layers under them: locks.js, picker.js, why.js; plan.js: bytes
planbar        plans by name, undo, share, files; card.js: a plan as a picture
numbers        the strip of live numbers; terms.js: words that explain themselves
chart          quality against memory; points.js: what is drawn there
budget         the budget box and its slider; path.js: the plan at every size
heatmap        the sensitivity table, layer by layer
compare        two plans; plan_table: all measured plans; flips: answers that change, class by class
exports        formats of files
side_status    what a side is doing; blind, rounds.js: blind rounds; routing: averages of bits per token
easel, sketch.js, picture_input, pictures, talk   pictures, and questions about them
menu           one of a few
"""
