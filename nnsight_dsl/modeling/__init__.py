"""Wrappers of models: `NNsight` for any module, `LanguageModel` for transformers, `VLLM`.

A kind of model subclasses `NNsight` and overrides the methods that say how inputs become one call:

    base.py          the wrapper of any module: traces, edits, scans, plans
    transformers_model.py   models of transformers, for any task
      language.py      for texts                       vision_language.py   for images and texts
      tasks.py         classes and preprocessors       task_inputs.py  images and sound as arguments
      pipe.py          whole pipelines                 loading.py    models by name
      inputs.py        the forms of a prompt           prompts.py    from prompts to arguments
      options.py       whose keyword is it             keywords.py   the keywords of a forward
      batching.py      one call of several inputs      padding.py    which models can be padded
      positions.py     counted, and limited            checks.py     of token ids, before a run
    diffusion.py     pipelines of diffusers
      pipelines.py     built and loaded                pipeline_inputs.py  rows of several inputs
    checkpoints.py   what a checkpoint says about itself
    quantised.py     quantised weights by name
    tensor_parallel.py  which values each process has a part of
    adapters.py      adapters of PEFT, in place
    offload.py       weights that accelerate loads for each call
    vllm/            models in an engine of vLLM
"""
