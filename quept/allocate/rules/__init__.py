"""Published rules of thumb for placing bits, as scores that the solver takes in place of measured costs.

    table = rule_table("fisher", elastic, windows)      # a SensitivityTable: costs, and nothing predicted
    allocate(table, elastic.sizes, budget)              # the plan that this rule would choose

scores     the rules, each a function with its source, and the table of them
seen       what rules may look at: the inputs, outputs and gradients of every layer
relevance  how much of an answer is owed to each layer
trial      all of them against measured sensitivities, at several sizes, as one file
"""

from .scores import RULES, Rule, rule_table
