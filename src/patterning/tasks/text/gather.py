"""From a request to a corpus folder: what `patterning data text` does."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from patterning.core.errors import PatterningError
from patterning.core.workers import Progress
from patterning.tasks.text.corpus import Corpus, build_corpus, check_new, stage
from patterning.tasks.text.local import collect_dataset, counted, parse_dataset
from patterning.tasks.text.sources import at_most, choose, collect
from patterning.tasks.text.tokenizer import check_vocabulary

if TYPE_CHECKING:
    from rich.console import Console


def gather(
    names: Sequence[str],
    datasets: Sequence[str],
    vocabulary: int,
    out: str | Path,
    max_mb: float | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Fetch and read sources (names or domains) and data sets (`[DOMAIN=]PLACE`), and build the corpus folder `out`.

    `max_mb` is the most MB of text from each. Every name is checked before the first download; raises
    `PatterningError`.
    """
    check_vocabulary(vocabulary)
    check_new(out)
    if max_mb is not None and not max_mb > 0:
        raise PatterningError(f"--max-mb {max_mb}: it must be positive")
    if not names and not datasets:
        raise PatterningError("name --sources or a --dataset")
    sources = choose(names) if names else []
    own = [parse_dataset(words) for words in datasets]
    progress = progress or Progress()
    collected = []
    with stage(progress, "fetch and read sources", len(sources) + len(own)):
        for source in sources:
            whole = collect(source)
            collected.append(whole if max_mb is None else at_most(whole, max_mb))
            progress.advance()
        for dataset in own:
            collected.append(collect_dataset(dataset, max_mb))
            progress.advance()
    request = {"sources": [source.name for source in sources], "datasets": list(datasets), "max_mb": max_mb}
    return build_corpus(collected, vocabulary, out, {**request, "vocabulary": vocabulary}, progress)


def print_corpus(corpus: Corpus, out: str | Path, console: "Console") -> None:
    """What a corpus was built from, and what was left out, on a terminal."""
    from rich.table import Table

    table = Table("source", "domain", "version", "MB", "documents", "licence")
    for origin in corpus.manifest["sources"]:
        mb, count = f"{origin['bytes'] / 1e6:.1f}", str(origin["documents"])
        table.add_row(origin["name"], origin["domain"], origin["version"], mb, count, origin["licence"])
    console.print(table)
    for origin in corpus.manifest["sources"]:
        if origin.get("left_out"):
            console.print(f"left out of {origin['name']}: {counted(origin['left_out'])}", highlight=False, markup=False)
    for name, domains in corpus.manifest["splits"].items():
        parts = ", ".join(f"{domain} {counts['tokens']:,}" for domain, counts in domains.items())
        console.print(f"{name}: tokens {parts}", highlight=False)
    console.print(f"{corpus.manifest['duplicates']} duplicates left out; corpus: {out}", highlight=False, markup=False)
