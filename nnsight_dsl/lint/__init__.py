"""The linter: static checks of blocks, before anything runs.

    nnsight-dsl lint experiments/                        from the source alone
    nnsight-dsl lint experiments/ --model gpt2           with the model's paths, order and outputs

Many mistakes in a block show only after minutes of a run: a value is asked for after it has
passed, a name is never saved, a path is misspelled. Most of them can be seen in the text.

A file is read (`sources`), parsed by `ast`, and its blocks are found (`blocks`). Each block is
analysed once: its accesses in the order of evaluation, with the conditions of each and the path it
means (`accesses`). Rules (`rules/`, one per file) inspect the analysis and yield findings.
Suppression comments (`suppressions`) and settings (`settings`) drop some of them, and a report
(`report`) shows the rest. Facts about a model come from one run on fake tensors (`recording`) and
are cached between calls (`model_facts`, `models`). `incremental` caches the findings of unchanged
files.

A rule reports only certain mistakes, as far as the text and the model determine them. A computed
path, a name that is bound twice or the result of an unknown call is undecidable, and gives no
finding. So the linter misses mistakes, but a finding is meant to be right.

`at_run` applies the same rules to a program when its block is entered, with the real values of
names.
"""
