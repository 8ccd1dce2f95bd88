"""Programs inside a vLLM engine.

    model = VLLM("openai-community/gpt2", dispatch=True)
    with model.trace("The Eiffel Tower is in", temperature=0.0, max_tokens=3) as tracer:
        hidden = model.transformer.h[5].output.save()
        logits = model.logits.output.save()

`docs/design/0002-vllm.md` tells how. vLLM itself is imported when the first `VLLM` is made.
"""

from nnsight_dsl.modeling.vllm.model import VLLM

__all__ = ["VLLM"]
