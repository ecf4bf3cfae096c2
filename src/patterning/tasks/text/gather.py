"""From a request to a corpus folder: what `patterning data text` does."""

from collections.abc import Sequence
from pathlib import Path

from patterning.errors import PatterningError
from patterning.tasks.text.corpus import Corpus, build_corpus, check_new, stage
from patterning.tasks.text.local import collect_dataset, parse_dataset
from patterning.tasks.text.sources import at_most, choose, collect
from patterning.tasks.text.tokenizer import check_vocabulary
from patterning.workers import Progress


def gather(
    names: Sequence[str],
    datasets: Sequence[str],
    vocabulary: int,
    out: Path,
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
