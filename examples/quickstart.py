"""Read and change the inside of a small language model.

    make demo

The model is a GPT-2 of about a million parameters that knows which city a landmark is in. Five
things are shown: reading a hidden state, the logit lens, patching one prompt's residual stream
into another, ablating a layer, and a generation that is edited in one of its steps. Each is
checked: the script fails where the model does not do what the table says.
"""

from __future__ import annotations

from pathlib import Path

import transformers
from rich.console import Console
from rich.table import Table

from nnsight_dsl import LanguageModel

MODEL = Path(__file__).parent / "models" / "city-facts"
EIFFEL = "The Eiffel Tower is in the city of"
COLOSSEUM = "The Colosseum is in the city of"

console = Console(width=92)


def check(claim: str, holds: bool) -> None:
    """Fail where a claim of this script does not hold."""
    if not holds:
        raise SystemExit(f"not as claimed: {claim}")


def hidden_state(model: LanguageModel) -> None:
    """Read one value, and keep it after the run."""
    with model.trace(EIFFEL):
        hidden = model.transformer.h[3].output.save()
        logits = model.lm_head.output[:, -1].save()

    answer = model.tokenizer.decode(logits.argmax(dim=-1))
    console.print(f"[bold]1. Read.[/] {EIFFEL!r} is completed by {answer!r}.")
    console.print(f"   The hidden state after layer 3 has the shape {tuple(hidden.shape)}.\n")
    check("the model knows where the Eiffel Tower is", answer == " Paris")


def logit_lens(model: LanguageModel) -> None:
    """Read every layer, and ask the unembedding what it would say there."""
    with model.trace(EIFFEL):
        guesses = [].save()
        for layer in model.transformer.h:
            logits = model.lm_head(model.transformer.ln_f(layer.output[:, -1]))
            guesses.append(logits.softmax(dim=-1).max(dim=-1))

    table = Table(title="2. Logit lens: what each layer would answer", title_justify="left")
    table.add_column("layer", justify="right")
    table.add_column("token")
    table.add_column("probability", justify="right")
    words = []
    for number, (probability, token) in enumerate(guesses):
        words.append(model.tokenizer.decode(token))
        table.add_row(str(number), repr(words[-1]), f"{probability.item():.2f}")
    console.print(table)
    check("the last layer says Paris", words[-1] == " Paris")
    check("the first layer does not", words[0] != " Paris")


def activation_patching(model: LanguageModel) -> None:
    """Put one prompt's residual stream, at its last token, in the place of another's."""
    table = Table(
        title="3. Patching the Eiffel Tower's last token into the Colosseum's prompt",
        title_justify="left",
    )
    table.add_column("patched after layer", justify="right")
    table.add_column("the Colosseum is in the city of")
    answers = []
    for number in range(len(model.transformer.h)):
        with model.trace() as tracer:
            with tracer.invoke(EIFFEL):
                eiffel = model.transformer.h[number].output[:, -1]

            with tracer.invoke(COLOSSEUM):
                model.transformer.h[number].output[:, -1] = eiffel
                logits = model.lm_head.output[:, -1].save()
        answers.append(model.tokenizer.decode(logits.argmax(dim=-1)))
        table.add_row(str(number), repr(answers[-1]))
    console.print(table)
    check("without its subject the last token still says Rome early on", answers[0] == " Rome")
    check("patched late, the answer is the other prompt's", answers[-1] == " Paris")


def ablation(model: LanguageModel) -> None:
    """Take the contribution of one layer's MLP away."""
    with model.trace() as tracer:
        with tracer.invoke(EIFFEL):
            clean = model.lm_head.output[:, -1].save()

        with tracer.invoke(EIFFEL):
            model.transformer.h[0].mlp.output[:] = 0
            ablated = model.lm_head.output[:, -1].save()

    before, after = (model.tokenizer.decode(one.argmax(dim=-1)) for one in (clean, ablated))
    console.print(f"[bold]4. Ablate.[/] Without the first MLP: {before!r} becomes {after!r}.\n")
    check("the first MLP matters", before == " Paris" and after != " Paris")


def edited_generation(model: LanguageModel) -> None:
    """Edit one step of a generation, and look at the others."""
    with model.trace(EIFFEL):
        eiffel = model.transformer.h[3].output[:, -1].save()

    with model.generate(COLOSSEUM, max_new_tokens=5, do_sample=False) as tracer:
        chosen = [].save()
        for step in tracer.iter[:]:
            if step == 0:
                model.transformer.h[3].output[:, -1] = eiffel
            chosen.append(model.lm_head.output[:, -1].argmax(dim=-1))
        tokens = tracer.result.save()

    words = [model.tokenizer.decode(token) for token in chosen]
    console.print(f"[bold]5. Generate.[/] Edited in its first step: {' '.join(map(repr, words))}")
    console.print(f"   {model.tokenizer.decode(tokens[0])!r}")
    check("the edited step chose Paris", words[0] == " Paris")


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    model = LanguageModel(str(MODEL))
    hidden_state(model)
    logit_lens(model)
    activation_patching(model)
    ablation(model)
    edited_generation(model)


if __name__ == "__main__":
    main()
