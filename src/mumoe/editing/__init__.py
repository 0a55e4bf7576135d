"""Correct a model by editing its experts, and measure who gains and who loses.

The layer: `operations` says what an edit does to a weight tensor, `expert_edits` has one class per kind of edit,
`stack` applies, undoes and folds them, `edit_files` keeps them. The method: `rewriting` finds the experts of a
subgroup, `choose` the strength, `subgroup_fairness` measures predictions alone, `group_audit`
ranks groups that go wrong: by experts, without a name (`expert_audit`), and by named attributes (`attribute_audit`).
Trained runs: `correcting` and `auditing` are behind the methods of `mumoe.Run`, and `edited_run` is a run with edits.
"""
