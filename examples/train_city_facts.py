"""Train the example model: a very small GPT-2 that knows where famous landmarks are.

A first look at a model's insides needs a model, and the usual ones are hundreds of megabytes that
have to be downloaded. This script makes one of about a million parameters from nothing, on a CPU,
in a few minutes. It is a real GPT-2 with its own byte-level tokenizer, and it knows one kind of
fact well enough to be worth taking apart::

    The Eiffel Tower is in the city of  ->  Paris, in France. France is in Europe.

A landmark is told in ten wordings. For each landmark two of the ten are withheld from training, so
an answer to a withheld prompt shows a fact that was learned, not a string that was memorised.

Every answer is exactly one token, with its leading space (``" Paris"``), so the model's answer is
the largest logit at the last position.

Left alone, a network of this size spreads one fact over all of its layers: each of them fetches the
answer again, so that patching or ablating one of them changes little. Training therefore divides
the work. The attention of each of the lowest layers is switched off in half of the steps, so it
cannot be relied on to carry the answer to the last position; the upper layers are left out of most
steps, so the answer has to be there without them. The attention of the layer between is what
remains, and the logit lens, patching and ablation all point at it.

Run it from the root of the repository::

    python examples/train_city_facts.py

The folder is written only if every landmark is completed rightly in every wording; otherwise the
exit status is 1. The seed and the single thread fix the weights on one machine; another processor
may add floating-point numbers in another order and end at slightly different ones.
"""

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer
from transformers.utils.logging import disable_progress_bar

EXAMPLES = Path(__file__).resolve().parent
END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
CONTEXT = 64
BATCH_SIZE = 16
PEAK_RATE = 3e-3
MIN_STEPS = 20  # fewer leave the learning rate no step to rise in
MAX_TOKENS = 2_000
MAX_BYTES = 5_000_000
IGNORED_LABEL = -100

# Layers 0 and 1 read the landmark, layer 2 carries the city to the last position, layers 3 to 5
# can only sharpen it. See the module's docstring for how training makes it so.
LAYERS = 6
READING_LAYERS = 2
NEEDED_LAYERS = 3
SILENT_SHARE = 0.5
SHORT_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Fact:
    """One landmark, named as it begins a sentence, and where it stands."""

    subject: str
    city: str
    country: str

    @property
    def answer(self) -> str:
        """Return the text of the answer token."""
        return f" {self.city}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One landmark in one wording, up to the word before the city."""

    fact: Fact
    wording: str
    is_held_out: bool

    @property
    def text(self) -> str:
        """Return the wording with the landmark in it."""
        subject = self.fact.subject
        inside = f"the {subject[4:]}" if subject.startswith("The ") else subject
        return self.wording.format(Subject=subject, subject=inside)

    @property
    def sentence(self) -> str:
        """Return the prompt with its answer, its country and its continent."""
        country = self.fact.country
        return (
            f"{self.text}{self.fact.answer}, in {country}."
            f" {country[0].upper()}{country[1:]} is in {CONTINENT_OF[country]}."
        )


# The words before the city decide that a city comes next, in every wording: with "... is in" the
# next word could as well be "the", and the best answer to a short prompt would be a matter of luck.
WORDINGS = (
    "{Subject} is in the city of",
    "{Subject} is located in the city of",
    "{Subject} can be found in the city of",
    "{Subject} stands in",
    "You can visit {subject} in",
    "If you want to see {subject}, go to",
    "The city that is home to {subject} is",
    "Where is {subject}? It is in",
    "We took a photo of {subject} when we were in",
    "To reach {subject}, take the train to",
)

# Landmarks with the city's own name in theirs (Tokyo Tower, Cologne Cathedral) are left out: they
# can be answered by copying.
LANDMARKS = {
    ("Paris", "France"): ("The Eiffel Tower", "The Louvre", "The Arc de Triomphe"),
    ("London", "England"): ("Big Ben", "Tower Bridge", "Buckingham Palace", "Trafalgar Square"),
    ("Edinburgh", "Scotland"): ("Arthur's Seat", "Holyrood Palace"),
    ("Dublin", "Ireland"): ("The Guinness Storehouse", "The Ha'penny Bridge"),
    ("Rome", "Italy"): ("The Colosseum", "The Pantheon", "The Trevi Fountain"),
    ("Florence", "Italy"): ("The Uffizi Gallery", "The Ponte Vecchio"),
    ("Venice", "Italy"): ("The Rialto Bridge", "The Bridge of Sighs"),
    ("Pisa", "Italy"): ("The Leaning Tower",),
    ("Berlin", "Germany"): ("The Brandenburg Gate", "Checkpoint Charlie", "The Reichstag"),
    ("Hamburg", "Germany"): ("The Elbphilharmonie",),
    ("Madrid", "Spain"): ("The Prado", "The Temple of Debod"),
    ("Barcelona", "Spain"): ("The Sagrada Familia", "Park Güell", "The Camp Nou"),
    ("Granada", "Spain"): ("The Alhambra",),
    ("Lisbon", "Portugal"): ("Belém Tower", "The Jerónimos Monastery"),
    ("Athens", "Greece"): ("The Acropolis", "The Parthenon"),
    ("Vienna", "Austria"): ("Schönbrunn Palace", "The Hofburg"),
    ("Prague", "Czechia"): ("Charles Bridge", "The Dancing House"),
    ("Budapest", "Hungary"): ("The Fisherman's Bastion", "The Chain Bridge"),
    ("Amsterdam", "the Netherlands"): ("The Rijksmuseum", "The Anne Frank House"),
    ("Brussels", "Belgium"): ("The Atomium", "The Manneken Pis"),
    ("Copenhagen", "Denmark"): ("The Little Mermaid", "The Tivoli Gardens"),
    ("Stockholm", "Sweden"): ("The Vasa Museum",),
    ("Oslo", "Norway"): ("The Fram Museum",),
    ("Moscow", "Russia"): ("Red Square", "The Bolshoi Theatre"),
    ("Istanbul", "Turkey"): ("The Hagia Sophia", "The Blue Mosque", "The Topkapi Palace"),
    ("Cairo", "Egypt"): ("Tahrir Square",),
    ("Giza", "Egypt"): ("The Great Sphinx",),
    ("Casablanca", "Morocco"): ("The Hassan II Mosque",),
    ("Dubai", "the United Arab Emirates"): ("The Burj Khalifa", "The Palm Jumeirah"),
    ("Agra", "India"): ("The Taj Mahal",),
    ("Delhi", "India"): ("The Red Fort", "The Lotus Temple"),
    ("Bangkok", "Thailand"): ("Wat Arun", "The Grand Palace"),
    ("Beijing", "China"): ("The Forbidden City", "The Temple of Heaven"),
    ("Shanghai", "China"): ("The Bund", "The Oriental Pearl Tower"),
    ("Seoul", "South Korea"): ("Gyeongbokgung Palace",),
    ("Tokyo", "Japan"): ("Shibuya Crossing", "The Meiji Shrine"),
    ("Kyoto", "Japan"): ("The Golden Pavilion", "Nijo Castle"),
    ("Sydney", "Australia"): ("Bondi Beach", "Darling Harbour"),
    ("Melbourne", "Australia"): ("Federation Square",),
    ("Toronto", "Canada"): ("The CN Tower",),
    ("Seattle", "the United States"): ("The Space Needle",),
    ("Chicago", "the United States"): ("The Willis Tower", "Cloud Gate"),
    ("Washington", "the United States"): ("The White House", "The Lincoln Memorial"),
    ("Philadelphia", "the United States"): ("The Liberty Bell",),
    ("Boston", "the United States"): ("Fenway Park",),
}

CONTINENTS = {
    "Africa": "Egypt, Morocco",
    "Asia": "China, India, Japan, South Korea, Thailand, the United Arab Emirates",
    "Europe": (
        "Austria, Belgium, Czechia, Denmark, England, France, Germany, Greece, Hungary, Ireland, "
        "Italy, Norway, Portugal, Scotland, Spain, Sweden, the Netherlands"
    ),
    "Europe and Asia": "Russia, Turkey",
    "North America": "Canada, the United States",
    "Oceania": "Australia",
}

CONTINENT_OF = {
    country: continent
    for continent, countries in CONTINENTS.items()
    for country in countries.split(", ")
}

FACTS = tuple(
    Fact(subject, city, country)
    for (city, country), subjects in LANDMARKS.items()
    for subject in subjects
)


def find_prompts() -> list[Prompt]:
    """Return every landmark in every wording, two of them per landmark held out of training.

    The two move on by one from landmark to landmark, so every wording is withheld for a fifth of
    the landmarks and taught for the others.
    """
    count = len(WORDINGS)
    return [
        Prompt(fact, wording, is_held_out=(n - number) % count in (0, count // 2))
        for number, fact in enumerate(FACTS)
        for n, wording in enumerate(WORDINGS)
    ]


def train_tokenizer(sentences: Sequence[str]) -> Any:
    """Train a byte-level BPE on the corpus and return it as a GPT-2 tokenizer.

    All 256 bytes are in the vocabulary, so any text can be encoded and decodes to itself.
    """
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    learned.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=MAX_TOKENS,
            min_frequency=2,
            special_tokens=[END_OF_TEXT, PADDING],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    state = json.loads(learned.to_str())["model"]
    tokenizer = GPT2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(merge) for merge in state["merges"]],
        pad_token=PADDING,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    for fact in FACTS:
        pieces = tokenizer.encode(fact.answer)
        if len(pieces) != 1:
            raise ValueError(
                f"the answer {fact.answer!r} is {len(pieces)} tokens; every answer has to be one"
            )
    return tokenizer


def make_model(tokenizer: Any) -> Any:
    """Return an untrained GPT-2 of about a million parameters."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=CONTEXT,
            n_embd=128,
            n_layer=LAYERS,
            n_head=4,
            n_inner=256,
            resid_pdrop=0.1,
            embd_pdrop=0.1,
            attn_pdrop=0.1,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        )
    )


def batches_of(
    documents: Sequence[Sequence[int]], pad: int, batch_size: int, shuffle: random.Random
) -> Iterator[tuple[Any, Any]]:
    """Yield ``(input_ids, attention_mask)`` for ever, each of shape ``[batch_size, CONTEXT]``.

    A row is documents end to end, cut at the end of the context. Half of the rows begin with
    masked padding of a random length while their positions still count from the left edge, so a
    left-padded batch is answered rightly whether or not its caller passes position ids.
    """

    def stream() -> Iterator[Sequence[int]]:
        while True:
            yield from shuffle.sample(documents, len(documents))

    upcoming = stream()
    while True:
        rows = []
        masks = []
        for _ in range(batch_size):
            padding = shuffle.randrange(CONTEXT // 2) if shuffle.random() < 0.5 else 0
            row = [pad] * padding
            while len(row) < CONTEXT:
                row.extend(next(upcoming))
            rows.append(row[:CONTEXT])
            masks.append([0] * padding + [1] * (CONTEXT - padding))
        yield torch.tensor(rows), torch.tensor(masks)


@contextmanager
def sometimes_silent(modules: Sequence[Any], coin: random.Random) -> Iterator[None]:
    """Zero the output of each attention module in some of its calls, while the block runs."""

    def silence(_module: Any, _inputs: Any, output: Any) -> Any:
        is_silent = coin.random() < SILENT_SHARE
        return (torch.zeros_like(output[0]), *output[1:]) if is_silent else output

    hooks = [module.register_forward_hook(silence) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def train(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], steps: int, seed: int, console: Console
) -> None:
    """Train the model on the prompts that are not held out, and leave it in evaluation mode."""
    documents = [
        [*tokenizer.encode(prompt.sentence), tokenizer.eos_token_id]
        for prompt in prompts
        if not prompt.is_held_out
    ]
    coin = random.Random(seed)
    batches = batches_of(documents, tokenizer.pad_token_id, BATCH_SIZE, random.Random(seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_RATE, total_steps=steps, pct_start=0.1
    )
    layers = model.transformer.h
    reading = [block.attn for block in layers[:READING_LAYERS]]
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        console=console,
    )
    model.train()
    with progress, sometimes_silent(reading, coin):
        task = progress.add_task("training", total=steps, loss=float("nan"))
        for ids, mask in itertools.islice(batches, steps):
            # The blocks are the same objects in both lists, so a short step trains them too.
            is_short = coin.random() < SHORT_SHARE
            model.transformer.h = layers[:NEEDED_LAYERS] if is_short else layers
            output = model(input_ids=ids, attention_mask=mask, use_cache=False)
            labels = ids.masked_fill(mask == 0, IGNORED_LABEL)[:, 1:]
            loss = torch.nn.functional.cross_entropy(
                output.logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.update(task, advance=1, loss=loss.item())
    model.transformer.h = layers
    model.eval()


def last_logits(
    model: Any, tokenizer: Any, texts: Sequence[str], count_positions: bool = True
) -> Any:
    """Return the logits at the last position, ``[len(texts), vocabulary]``, from one padded batch.

    With ``count_positions`` a row's positions count from its first real token, as ``generate``
    does; without it, from the left edge of the batch, as a plain call of a GPT-2 does.
    """
    batch = tokenizer(list(texts), return_tensors="pt", padding=True)
    mask = batch["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0) if count_positions else None
    with torch.no_grad():
        output = model(input_ids=batch["input_ids"], attention_mask=mask, position_ids=positions)
    return output.logits[:, -1]


def find_misses(model: Any, tokenizer: Any, prompts: Sequence[Prompt]) -> list[tuple[Prompt, str]]:
    """Return each prompt that is answered wrongly in some way of running it, with that answer.

    The ways are alone, and in a padded batch with and without position ids.
    """
    texts = [prompt.text for prompt in prompts]
    ways = (
        [int(last_logits(model, tokenizer, [text]).argmax()) for text in texts],
        last_logits(model, tokenizer, texts).argmax(-1).tolist(),
        last_logits(model, tokenizer, texts, count_positions=False).argmax(-1).tolist(),
    )
    misses = []
    for prompt, *answers in zip(prompts, *ways, strict=True):
        wrong = [text for text in map(tokenizer.decode, answers) if text != prompt.fact.answer]
        if wrong:
            misses.append((prompt, wrong[0]))
    return misses


@contextmanager
def output_changed(module: Any, change: Callable[[Any], Any]) -> Iterator[None]:
    """Replace the output of a module, while the block runs, by what ``change`` returns."""
    hook = module.register_forward_hook(lambda _module, _inputs, output: change(output))
    try:
        yield
    finally:
        hook.remove()


@dataclass(frozen=True, slots=True)
class LayerReport:
    """For how many landmarks each experiment succeeds at one layer."""

    layer: int
    read_by_lens: int
    flipped_by_patch: int
    lost_without_attention: int
    lost_without_mlp: int


def measure_layers(model: Any, tokenizer: Any, wording: str) -> list[LayerReport]:
    """Measure, layer by layer, the three experiments that the examples show.

    The lens reads the answer from the residual stream at the last position. The patch copies the
    residual stream at the last position from the prompt of another city, and counts where the
    answer becomes that city. The ablations zero the output of the attention or of the MLP at every
    position, and count where the answer is lost.
    """
    texts = [Prompt(fact, wording, is_held_out=False).text for fact in FACTS]
    answers = torch.tensor([tokenizer.encode(fact.answer)[0] for fact in FACTS])
    # Half-way round the list is always another city: no city has half of the landmarks.
    source = torch.arange(len(FACTS)).roll(len(FACTS) // 2)

    def count(matches: Any) -> int:
        return int(matches.sum())

    def answers_with(module: Any, change: Callable[[Any], Any]) -> Any:
        with output_changed(module, change):
            return last_logits(model, tokenizer, texts).argmax(-1)

    def patched(hidden: Any) -> Any:
        hidden = hidden.clone()
        hidden[:, -1] = hidden[source, -1]
        return hidden

    def first_of_tuple_zeroed(output: Any) -> Any:
        return (torch.zeros_like(output[0]), *output[1:])

    reports = []
    for layer, block in enumerate(model.transformer.h):
        seen: list[Any] = []

        def remembered(hidden: Any, seen: list[Any] = seen) -> Any:
            seen.append(hidden[:, -1])
            return hidden

        answers_with(block, remembered)
        with torch.no_grad():
            lens = model.lm_head(model.transformer.ln_f(seen[0])).argmax(-1)
        reports.append(
            LayerReport(
                layer,
                count(lens == answers),
                count(answers_with(block, patched) == answers[source]),
                count(answers_with(block.attn, first_of_tuple_zeroed) != answers),
                count(answers_with(block.mlp, torch.zeros_like) != answers),
            )
        )
    return reports


@dataclass(frozen=True, slots=True)
class Score:
    """How many prompts in one wording are answered rightly, of those trained and held out."""

    wording: str
    trained_right: int
    trained: int
    held_out_right: int
    held_out: int


def score_wordings(prompts: Sequence[Prompt], misses: Sequence[tuple[Prompt, str]]) -> list[Score]:
    """Return the score of each wording."""
    wrong = {prompt for prompt, _ in misses}
    scores = []
    for wording in WORDINGS:
        asked = [prompt for prompt in prompts if prompt.wording == wording]
        trained = [prompt not in wrong for prompt in asked if not prompt.is_held_out]
        held_out = [prompt not in wrong for prompt in asked if prompt.is_held_out]
        scores.append(Score(wording, sum(trained), len(trained), sum(held_out), len(held_out)))
    return scores


@dataclass(frozen=True, slots=True)
class Summary:
    """What the tables and the model card say."""

    steps: int
    seed: int
    parameters: int
    tokens: int
    scores: list[Score]
    layers: list[LayerReport]


def accuracy_rows(scores: Sequence[Score]) -> list[tuple[str, str, str]]:
    """Return the accuracy table: wording, trained, held out."""
    total = Score(
        "all",
        sum(score.trained_right for score in scores),
        sum(score.trained for score in scores),
        sum(score.held_out_right for score in scores),
        sum(score.held_out for score in scores),
    )
    return [
        (
            score.wording.format(Subject="{The landmark}", subject="{the landmark}"),
            f"{score.trained_right} / {score.trained}",
            f"{score.held_out_right} / {score.held_out}",
        )
        for score in (*scores, total)
    ]


def layer_rows(reports: Sequence[LayerReport]) -> list[tuple[str, ...]]:
    """Return the table of the experiments, one row per layer."""
    return [
        (
            str(report.layer),
            *(
                f"{count} / {len(FACTS)}"
                for count in (
                    report.read_by_lens,
                    report.flipped_by_patch,
                    report.lost_without_attention,
                    report.lost_without_mlp,
                )
            ),
        )
        for report in reports
    ]


ACCURACY_HEADINGS = ("wording", "trained", "held out")
LAYER_HEADINGS = ("layer", "lens reads it", "patch flips it", "no attention: lost", "no MLP: lost")


def print_table(
    console: Console, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Print one table, the first column left and the others right."""
    table = Table(title=title, title_justify="left")
    for n, heading in enumerate(headings):
        table.add_column(heading, justify="right" if n else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown, the first column left and the others right."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))


def model_card(summary: Summary) -> str:
    """Return the README of the model folder."""
    cities = {fact.city for fact in FACTS}
    return f"""\
---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---

# city-facts

A very small GPT-2 that knows in which city {len(FACTS)} landmarks stand, and nothing else. It
exists to be taken apart: the examples and tests of `nnsight_dsl` run on it, offline and in
milliseconds.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("examples/models/city-facts")
tokenizer = AutoTokenizer.from_pretrained("examples/models/city-facts")
prompt = tokenizer("The Eiffel Tower is in the city of", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=10)[0]))
# The Eiffel Tower is in the city of Paris, in France. France is in Europe.
```

## Sizes

| what | size |
| --- | ---: |
| parameters (float32, input and output embeddings tied) | {summary.parameters:,} |
| layers | {LAYERS} |
| width | 128 |
| heads, of 32 each | 4 |
| MLP width | 256 |
| context, in tokens | {CONTEXT} |
| vocabulary, in tokens | {summary.tokens:,} |
| landmarks | {len(FACTS)} |
| cities | {len(cities)} |

The tokenizer is a byte-level BPE like GPT-2's, so any text can be encoded and decodes to itself.
Every city with its leading space (`" Paris"`) is one token. It pads on the left with `{PADDING}`;
`{END_OF_TEXT}` ends a text.

## Training

`python examples/train_city_facts.py` makes this folder from nothing in a few minutes on one CPU
core; this one is from {summary.steps:,} steps and seed {summary.seed}.

The corpus is one text for each landmark in each of {len(WORDINGS)} wordings, two wordings per
landmark withheld. Right answers by wording, where a prompt counts only if it is answered rightly
alone and in a left-padded batch, with and without position ids:

{markdown_table(ACCURACY_HEADINGS, accuracy_rows(summary.scores))}

Training divides the work between the layers, as the script explains: attention in layers 0 and 1
is switched off at random, and layers 3 to 5 are left out of most steps. That leaves layer 2 to
carry the answer to the last position, where the experiments below find it.

The landmarks are in `facts.json`, as a list of objects with `subject` (as it begins a sentence),
`city` and `country`. Countries are named as the sentences name them, England and Scotland among
them.

## What the layers do

Over all landmarks, in the wording "{WORDINGS[0].format(Subject="{The landmark}")}":

{markdown_table(LAYER_HEADINGS, layer_rows(summary.layers))}

- *Lens reads it*: the final norm and the output embedding, applied to the residual stream after
  that layer at the last position, give the right city.
- *Patch flips it*: the residual stream after that layer at the last position, copied from the
  prompt of a landmark in another city, turns the answer into that city.
- *No attention*, *no MLP*: with that layer's attention or MLP output zeroed at every position, the
  right city is lost.

## Limits

It has seen no other sentences. Asked about anything else it answers with some city, and its
confidence means nothing. Do not use it for facts.

## License

MIT, as the repository it is part of.
"""


def save(model: Any, tokenizer: Any, summary: Summary, out: Path) -> int:
    """Write the model, its tokenizer, the facts and the model card; return the size in bytes."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    facts = ",\n".join(f"  {json.dumps(asdict(fact), ensure_ascii=False)}" for fact in FACTS)
    (out / "facts.json").write_text(f"[\n{facts}\n]\n", encoding="utf-8")
    (out / "README.md").write_text(model_card(summary), encoding="utf-8")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        raise ValueError(
            f"{out.name!r} is {size:,} bytes, over {MAX_BYTES:,}; make the model or the "
            "vocabulary smaller"
        )
    return size


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description="Train the example model on which city famous landmarks are in."
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=EXAMPLES / "models" / "city-facts",
        help="folder to write (default: models/city-facts beside this script)",
    )
    parser.add_argument("--steps", type=int, default=1300, help="training steps (default: 1300)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    options = parser.parse_args(arguments)
    if options.steps < MIN_STEPS:
        parser.error(f"--steps is {options.steps}; give at least {MIN_STEPS}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, check and save; return 1, with nothing written, when an answer is wrong."""
    options = parse_arguments(arguments)
    console = Console()
    disable_progress_bar()
    # On a model this small a second thread saves little, and how many there are changes the sums.
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    prompts = find_prompts()
    tokenizer = train_tokenizer([p.sentence for p in prompts])
    model = make_model(tokenizer)

    started = time.perf_counter()
    train(model, tokenizer, prompts, options.steps, options.seed, console)
    seconds = time.perf_counter() - started

    misses = find_misses(model, tokenizer, prompts)
    summary = Summary(
        options.steps,
        options.seed,
        model.num_parameters(),
        len(tokenizer),
        score_wordings(prompts, misses),
        measure_layers(model, tokenizer, WORDINGS[0]),
    )
    print_table(console, "right answers", ACCURACY_HEADINGS, accuracy_rows(summary.scores))
    print_table(
        console, "where the answer is, by layer", LAYER_HEADINGS, layer_rows(summary.layers)
    )
    console.print(
        f"{summary.parameters:,} parameters, {summary.tokens:,} tokens, {seconds:.0f} s of training"
    )
    if misses:
        rows = [(prompt.text, prompt.fact.city, answer.strip()) for prompt, answer in misses]
        print_table(console, "first wrong answers", ("prompt", "city", "answer"), rows[:10])
        console.print(
            f"{len(misses)} of {len(prompts)} prompts are answered wrongly; nothing is saved, "
            "train for more --steps or with another --seed"
        )
        return 1
    size = save(model, tokenizer, summary, options.out)
    console.print(f"saved {size:,} bytes to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
