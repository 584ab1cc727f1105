"""The page on the classic mistakes of dense retrieval: what each one costs, and what guards against it."""

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat

from dpr.book.by_query import METRIC
from dpr.book.chapters import bold_outputs
from dpr.evaluation.significance import compare_per_query
from dpr.experiments.report import COLLECTIONS
from dpr.experiments.results import load_result
from dpr.files import read_json

CODE = "https://github.com/dpr-notebooks/dpr/blob/main"


@dataclass(frozen=True)
class Mistake:
    """A mistake, the damage it did elsewhere, and where it is shown and guarded against here.

    Attributes:
        what: What is done wrongly.
        elsewhere: What it did in public notebooks on this task.
        guards: Tests that fail if it becomes possible, each as `<file below tests/>::<name>`.
        shown: Chapter and heading that show it.
        said: Whether what was measured is the first sentence in bold among that section's outputs.
        runs: Two systems kept in `runs/`: done rightly, and with the mistake.
        trainings: The same of two trainings kept in `runs/<collection>/training/`.
    """

    what: str
    elsewhere: str
    guards: tuple[str, ...]
    shown: tuple[str, str] | None = None
    said: bool = False
    runs: tuple[str, str] | None = None
    trainings: tuple[str, str] | None = None


BI_ENCODER, TRAINING = "models/test_bi_encoder.py", "training/test_bi_encoder_training.py"
RERANKER = "reranking/test_reranker.py"
BASE = "all-MiniLM-L6-v2"
MISTAKES = (
    Mistake(
        "Distances are taken for similarities and sorted with the largest first.",
        f"{METRIC} .0405: the right documents in reverse",
        (
            "data/test_trec.py::test_distances_nearest_first_are_never_written_as_scores",
            "data/test_trec.py::test_distances_written_as_scores_are_refused",
        ),
        ("05_dense_retrieval", "What does a distance taken for a score cost?"),
        said=True,
    ),
    Mistake(
        "A model made for mean pooling is read by its `[CLS]` token.",
        f"{METRIC} .3698 in place of .5082",
        (
            f"{BI_ENCODER}::test_the_settings_of_the_offline_checkpoint_are_read_from_it",
            f"{BI_ENCODER}::test_reading_a_checkpoint_otherwise_than_it_was_made_warns",
        ),
        ("05_dense_retrieval", "What does the wrong pooling cost?"),
        runs=(BASE, f"{BASE}-cls"),
    ),
    Mistake(
        "Vectors are compared by another similarity than the one of training.",
        f"{METRIC} from .2934 to .2717",
        (
            "search/test_index.py::test_dot_and_cosine_rank_vectors_of_different_lengths_differently",
            f"{BI_ENCODER}::test_reading_a_checkpoint_otherwise_than_it_was_made_warns",
        ),
        ("05_dense_retrieval", "Cosine or dot product?"),
        runs=(f"{BASE}-raw-cosine", f"{BASE}-raw-dot"),
    ),
    Mistake(
        "A model is trained by cosine without a temperature.",
        f"{METRIC} .0355",
        ("training/test_losses.py::test_cosine_without_a_temperature_warns_where_the_loss_is_called",),
        ("00_concepts", "Why is a cosine divided by a temperature?"),
        said=True,
    ),
    Mistake(
        "One metric is taken from the order of a run's lines, another from its scores.",
        "a row of a table with the values of two systems",
        (
            "evaluation/test_metrics.py::test_scores_decide_the_order_and_not_the_order_of_the_dict",
            "data/test_trec.py::test_scores_decide_the_order_and_not_the_rank_column_or_the_order_of_lines",
        ),
        ("07_evaluation", "Can the evaluator be trusted?"),
    ),
    Mistake(
        "An old file stays in the folder that is indexed.",
        "342,663 documents in place of 171,332; all figures of doc2query void",
        ("search/test_bm25.py::test_a_stale_index_with_more_documents_cannot_be_searched",),
        ("02_bm25", "Does the index hold the collection, all of it and nothing else?"),
    ),
    Mistake(
        "A search that is called approximate is exhaustive.",
        "a comparison of nothing",
        ("search/test_ann.py::test_exact_search_is_always_the_first_row_and_everything_is_beside_it",),
        ("05_dense_retrieval", "Exhaustive or approximate search?"),
    ),
    Mistake(
        "A result over the judged documents alone stands as one over the whole corpus.",
        f"{METRIC} .586 in place of .319",
        ("experiments/test_results.py::test_a_sample_is_never_recorded_as_the_full_corpus",),
    ),
    Mistake(
        "k1 and b, the number of queries or the checkpoint are chosen by the test queries.",
        "scores too high by an unknown amount",
        (
            "search/test_bm25.py::test_nothing_is_tuned_on_test_queries",
            f"{TRAINING}::test_the_test_split_is_no_validation",
        ),
        ("02_bm25", "What would tuning on the test queries pretend?"),
        said=True,
    ),
    Mistake(
        "The best weights are kept as a reference, which training goes on changing.",
        f"the last weights come back: {METRIC} .0794 in place of .0867",
        (f"{TRAINING}::test_the_model_folder_holds_the_best_evaluation",),
    ),
    Mistake(
        "The schedule is told a wrong number of steps, such as epochs times batch size.",
        "a learning rate of 0 from the sixth of fifty epochs on",
        (f"{TRAINING}::test_steps_come_from_epochs_batches_and_accumulation",),
        ("03_overfit_sanity", "How does the learning rate change during a training?"),
    ),
    Mistake(
        "The factor of the warm-up is held at a thousandth.",
        "four epochs at a learning rate of 1e-8",
        ("training/test_trainer.py::test_the_learning_rate_rises_over_the_warm_up_and_falls_to_its_floor",),
        ("03_overfit_sanity", "Does the training code memorise them?"),
    ),
    Mistake(
        "The checkpoint that is evaluated is not the one that the result is named after.",
        "figures of another model",
        (
            f"{BI_ENCODER}::test_the_fingerprint_names_the_weights_and_every_setting",
            "experiments/test_finetuning.py::test_a_result_that_another_model_made_is_made_again",
        ),
    ),
    Mistake(
        "Every epoch has the same batches, each with the same negatives.",
        "a weak training",
        ("training/test_dataset.py::test_each_epoch_takes_every_query_once_in_another_order",),
    ),
    Mistake(
        "The softmax runs over the queries of a batch in place of the passages.",
        "another loss than the paper's",
        (
            "training/test_losses.py::"
            "test_the_softmax_is_over_passages_and_only_the_symmetric_form_adds_the_one_over_queries",
        ),
        ("00_concepts", "How is the in-batch loss computed?"),
    ),
    Mistake(
        "The loss takes the exponential of a similarity by hand.",
        "overflow",
        ("training/test_losses.py::test_large_dot_products_do_not_overflow",),
    ),
    Mistake(
        "Vectors are gathered in memory that grows with the collection.",
        "out of memory",
        (
            "search/test_encoding.py::test_vectors_on_disk_are_those_in_memory",
            "search/test_index.py::test_a_memory_map_is_searched_block_by_block_and_never_copied",
        ),
    ),
    Mistake(
        "Switches for finding errors stay on.",
        "30 % slower than a graphics card two generations older",
        ("test_package.py::test_no_debug_switch_is_left_on",),
    ),
    Mistake(
        "The loss is taken for quality, or compared across batch sizes.",
        f"a loss of .0294 with {METRIC} .3104, one of .0537 with .3756",
        (
            "training/test_losses.py::test_chance_is_ln_of_the_number_of_passages",
            f"{TRAINING}::test_another_metric_picks_another_checkpoint",
        ),
        ("04_finetune_biencoder", "Does the loss tell which checkpoint searches best?"),
        said=True,
    ),
    Mistake(
        "The cells of a grid share one model.",
        "later cells start where earlier ones ended",
        (f"{TRAINING}::test_the_encoder_that_is_passed_in_stays_as_it_was",),
        ("03_overfit_sanity", "Is the caller's model left alone?"),
    ),
    Mistake(
        "The length at which texts are cut is left to the tokenizer, or too short.",
        "a crash, or texts of 512 tokens",
        (
            f"{BI_ENCODER}::test_a_long_text_is_cut_where_the_tokenizer_itself_knows_no_length",
            f"{BI_ENCODER}::test_a_length_beyond_what_the_model_reads_is_refused",
        ),
        ("01_collections", "How long are the documents, and how much does an encoder not see?"),
        runs=(BASE, f"{BASE}-64-tokens"),
    ),
    Mistake(
        "Title and text are joined without a space; documents get lost on the way.",
        f"{METRIC} .5861 in place of .5947; 42,140 documents with a title alone left out",
        (
            "data/test_collection.py::test_title_and_text_are_joined_by_one_space",
            "data/test_audit.py::test_each_ailment_is_found_where_it_is_and_nowhere_else",
        ),
        ("01_collections", "Is anything missing or broken?"),
    ),
    Mistake(
        "One text at a time goes through the model.",
        "25 minutes in place of 10",
        ("models/test_batching.py::test_the_longest_come_first_and_equals_in_the_order_given",),
    ),
    Mistake(
        "A cross-encoder does not get its segment ids.",
        f"{METRIC} .2949 in place of .7131",
        (
            f"{RERANKER}::test_dropping_segment_ids_changes_scores",
            f"{RERANKER}::test_a_tokenizer_without_segment_ids_is_refused_before_the_first_score",
        ),
        ("09_reranking", "What do lost segment ids, and more hits, cost?"),
        runs=("bm25-ce-cls", "bm25-ce-blind"),
    ),
    Mistake(
        "A cross-encoder learns by the library's default for one label, the mean squared error.",
        f"reranking lowers {METRIC} from .7131 to .6798",
        (
            "reranking/test_reranker_training.py::"
            "test_the_mse_on_raw_scores_is_what_a_classifier_with_one_label_does_by_itself",
        ),
        ("09_reranking", "Which loss?"),
        trainings=("bm25-ce-s0", "bm25-ce-mse"),
    ),
    Mistake(
        "Negatives hold positives; a query is in training and validation.",
        "noise, and scores that leak",
        (
            "training/test_negatives.py::"
            "test_no_positive_and_no_copy_of_one_is_a_negative_and_ranks_are_those_of_the_run",
            "data/test_training_data.py::test_a_split_is_a_partition_by_query_whatever_the_order_and_the_ids",
        ),
        ("04_finetune_biencoder", "Are hard negatives negatives?"),
        said=True,
    ),
    Mistake(
        "Queries are written with dropout on, cut short, and scored by a mean of BLEU over batches.",
        "a BLEU without meaning",
        (
            "generation/test_generator.py::test_dropout_is_off",
            "evaluation/test_metrics.py::test_bleu_is_of_the_corpus_and_no_mean_over_texts",
        ),
    ),
    Mistake(
        "Tags go to the tracker letter by letter, settings as text.",
        "records that nobody can read",
        (
            f"{TRAINING}::test_tags_in_one_string_are_refused",
            "training/test_tracking.py::test_neptune_gets_every_setting_under_its_type_and_tags_as_a_list",
        ),
        ("03_overfit_sanity", "Where is a training written down?"),
    ),
    Mistake(
        "A notebook shows outputs of an earlier state of its code.",
        "the vector of another model in a report",
        ("experiments/test_notebooks.py::test_cells_were_run_once_in_order_from_a_fresh_kernel",),
    ),
    Mistake(
        "Seconds are taken for hours.",
        "a cost wrong by 3,600 times",
        ("experiments/test_finetuning.py::test_minutes_are_those_of_steps_and_evaluations",),
    ),
    Mistake(
        "The mean is taken over the queries that found something.",
        "1.0 in place of .5",
        ("evaluation/test_metrics.py::test_a_judged_query_without_hits_counts_as_zero_in_the_mean",),
    ),
)


def mistakes_table(root: Path) -> str:
    """The mistakes as a markdown table, with what was measured here read from `runs/`.

    Args:
        root: The repository.

    Raises:
        ValueError: A damaged run or training.
    """
    lines = ["|  | mistake | seen elsewhere | measured here | shown | guarded by |"]
    lines.append("| --- " * 6 + "|")
    for number, mistake in enumerate(MISTAKES, 1):
        guards = []
        for guard in mistake.guards:
            file, name = guard.split("::")
            words = name.removeprefix("test_").replace("_", " ")
            guards.append(f"[{words}]({CODE}/tests/{file})")
        shown = "–"
        if mistake.shown:
            notebook, heading = mistake.shown
            shown = f"[{notebook[:2]}: {heading}](notebooks/{notebook}.ipynb#{anchor(heading)})"
        cells = [str(number), mistake.what, mistake.elsewhere, damage(root, mistake), shown]
        lines.append(f"| {' | '.join([*cells, '; '.join(guards)])} |")
    return "\n".join(lines)


def anchor(heading: str) -> str:
    """The name that MyST gives a heading within its page.

    >>> anchor("Cut long documents, or search them in chunks?")
    'cut-long-documents-or-search-them-in-chunks'
    """
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def damage(root: Path, mistake: Mistake) -> str:
    """What a mistake cost, in words: in a chapter, or on the README's collections; – if not measured."""
    told = [said_under(root, *mistake.shown)] if mistake.said else []
    for name, title in COLLECTIONS.items():
        folder = root / "runs" / name
        if mistake.runs and all((folder / f"{run}.json").is_file() for run in mistake.runs):
            right, wrong = (load_result(folder, run).evaluation for run in mistake.runs)
            values = {"right": right.per_query[METRIC], "wrong": wrong.per_query[METRIC]}
            [test] = compare_per_query(values, "right")
            told.append(
                f"{title}: {METRIC} {right.means[METRIC]:.4f} to {wrong.means[METRIC]:.4f} "
                f"({right.num_queries} queries, p = {test.p_value:.2g})"
            )
        if mistake.trainings and all(
            (folder / "training" / f"{tag}.json").is_file() for tag in mistake.trainings
        ):
            right, wrong = (best_on_dev(folder / "training" / f"{tag}.json") for tag in mistake.trainings)
            told.append(f"{title}, dev queries: {METRIC} {right:.4f} to {wrong:.4f} (one seed)")
    return "; ".join(told) or "–"


def said_under(root: Path, notebook: str, heading: str) -> str:
    """The first sentence in bold that the cells under a heading of a committed notebook put out.

    Raises:
        ValueError: There is none.
    """
    path, under = root / "notebooks" / f"{notebook}.ipynb", False
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            under = heading in re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) or (
                under and not cell.source.startswith("#")
            )
        said = bold_outputs(cell) if under and cell.cell_type == "code" else []
        if said:
            return said[0]
    raise ValueError(f"{path}: no output in bold under {heading!r}")


def best_on_dev(path: Path) -> float:
    """The metric of the checkpoint that a kept training chose, over its dev queries."""
    kept = read_json(path, "history", "best_step")
    best = [
        line for line in kept["history"] if line["step"] == kept["best_step"] and f"eval_{METRIC}" in line
    ]
    return best[0][f"eval_{METRIC}"]
