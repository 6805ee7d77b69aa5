"""Better plans than the table can find, by measuring whole ones.

refine      the search: bounded in time, resumed where it was cut
slopes      what every option would change at a plan, by its gradient; steps downhill
space       the plans it chooses from, within the budget
race        measuring a candidate against the best plan so far
on_data     measuring one on pictures or questions, of a model that sees
correction  the table's costs, corrected by the plans that were measured
"""
