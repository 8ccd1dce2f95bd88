# What stands before the steps is entered once, what stands behind them in every step.
with model.generate("Hello", max_new_tokens=3) as tracer:
    with torch.no_grad(), tracer.iter[:] as step, lock:
        logits.append(model.lm_head.output)
