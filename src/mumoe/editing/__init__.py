"""Correct a model by editing its experts, and measure who profits and who pays.

`fairness` measures and never looks at a layer; `edits` changes experts and undoes it; `choose` picks an
edit's strength on data it may look at; `baselines` trains what an edit has to beat; `audit` finds subgroups
that nobody named.
"""
