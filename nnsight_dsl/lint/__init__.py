"""The linter: what is wrong with a block, found before anything runs.

    nnsight-dsl lint experiments/                        from the source alone
    nnsight-dsl lint experiments/ --model gpt2           with the model's paths, order and outputs

A file is read (`sources`), parsed by `ast`, and its blocks are found (`blocks`). Each block is
looked at once: its accesses in the order of evaluation, what each stands under, and which path it
means (`accesses`). Rules (`rules/`, one in a file) look at that and report findings; suppressions
and settings take some away; a report shows the rest. What is known of a model comes from one run
under fake tensors (`recording`) and is kept between calls (`model_facts`).

A rule reports what is certain from the text, or from the text and the model. A path that is
computed, a name that is bound twice, a value out of a call nobody knows: these are "cannot tell",
and nothing is reported for them. `at_run` holds the same rules against a program when it is
entered.
"""
