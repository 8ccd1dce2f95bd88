"""Programs in a vLLM engine, beside other requests in the same batch.

    model = VLLM("openai-community/gpt2", dispatch=True)
    with model.trace("The Eiffel Tower is in", temperature=0.0, max_tokens=3) as tracer:
        hidden = model.transformer.h[5].output.save()
        logits = model.logits.output.save()

Each invoke (or the block of the trace) becomes one vLLM request, which carries its program in its
sampling parameters. `client/` lowers blocks and submits requests; `engine/` runs the programs in
the worker; `payload.py` is the format between the two. Saved names come back as CPU copies.

vLLM is imported when the first `VLLM` is made. The decisions, with their reasons, are in
`docs/design/0002-vllm.md`.
"""

from nnsight_dsl.modeling.vllm.model import VLLM

__all__ = ["VLLM"]
