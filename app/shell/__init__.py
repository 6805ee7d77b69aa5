"""The workbench that all pages lie in: one model, one plan, their numbers and the plot of quality against
memory.

workbench   what it is made of, drawn and wired
plans       where a plan comes from: a name, a point of the plot, a file, the address
measuring   numbers as they come in, and refinement
"""
