"""The plan of the least summed sensitivity within a budget.

constraints  what an allocation may choose from: pins, floors, ceilings, layers that share a width
constraints_file  the same as a file that the page and the command line share
budget       "60 MB", "3.2 bits", "2 % worse": what people type, in bytes
solver       the plan within so many bytes, exactly; a budget slider's path
knapsack     the solver behind it
container    the same for the file of an export: its sizes, widths and ties
best         that plan, or one that was measured whole and is known to be better
asked        the best plan for a budget as people say it, with room for a context or without
uniform      what uniform plans would show at the same bytes: the yardstick
"""
