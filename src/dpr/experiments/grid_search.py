"""A grid of training settings for a bi-encoder: one fresh model for each cell and seed, compared on dev."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from dpr.data.collection import Collection
from dpr.data.training_data import TrainingData
from dpr.experiments.finetuning import with_passage_length
from dpr.experiments.named_settings import with_settings
from dpr.experiments.workspace import Workspace
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.training.bi_encoder import check_teacher, describe_training, train
from dpr.training.resume import Training, check_training, keep_training, read_kept_training
from dpr.training.settings import TrainingSettings
from dpr.training.trainer import prepare_steps

SEEDS_APART = "the seed is luck, not a choice: leave it out, and give `seeds` to grid_search"


@dataclass(frozen=True)
class Grid:
    """Settings that were compared by training with each of them.

    The best of many values is too high, as luck had a part in it; what the best settings are worth is for
    other queries to say.

    Attributes:
        cells: Name → settings, as given; their seed plays no part.
        trainings: Name → seed → the training with these settings and this seed.
        metric: The validation metric that they are compared by.
        split: The split whose queries were searched for.
        num_queries: Number of these queries.
    """

    cells: dict[str, TrainingSettings]
    trainings: dict[str, dict[int, Training]]
    metric: str
    split: str
    num_queries: int

    @property
    def values(self) -> dict[str, list[float]]:
        """Name → the metric at the best step of each seed's training."""
        field = f"eval_{self.metric}"
        return {name: [t.best[field] for t in seeds.values()] for name, seeds in self.trainings.items()}

    @property
    def means(self) -> dict[str, float]:
        """Name → the mean of `values` over the seeds."""
        return {name: float(np.mean(found)) for name, found in self.values.items()}

    @property
    def best_cell(self) -> str:
        """The name with the highest mean; of equally good ones, the first one given."""
        means = self.means
        return max(means, key=means.__getitem__)

    @property
    def best(self) -> TrainingSettings:
        """The settings with the highest mean."""
        return self.cells[self.best_cell]

    @property
    def fields(self) -> list[str]:
        """Names of the settings in which the cells differ."""
        every = list(self.cells.values())
        names = [part.name for part in fields(every[0]) if part.name != "seed"]
        return [name for name in names if any(getattr(s, name) != getattr(every[0], name) for s in every)]

    @property
    def table(self) -> pd.DataFrame:
        """A row a cell, best first: what differs, the metric over the seeds, the best steps, all minutes."""
        rows = {}
        for name, found in self.values.items():
            trainings = self.trainings[name].values()
            rows[name] = {
                **{field: getattr(self.cells[name], field) for field in self.fields},
                self.metric: np.mean(found),
                "lowest": min(found),
                "highest": max(found),
                "best step": ", ".join(str(training.best_step) for training in trainings),
                "minutes": sum(training.minutes for training in trainings),
            }
        table = pd.DataFrame.from_dict(rows, orient="index")
        return table.sort_values(self.metric, ascending=False, kind="stable")

    def pairs(self, x: str, y: str) -> dict[tuple[Any, Any], float]:
        """The means by two settings, for `plots.plot_grid`: (value of x, value of y) → mean.

        Raises:
            ValueError: A setting that there is not, or the cells differ in further ones.
        """
        known = [part.name for part in fields(self.best)]
        for name in (x, y):
            if name not in known:
                raise ValueError(f"no setting {name!r}; there are {', '.join(known)}")
        further = [field for field in self.fields if field not in (x, y)]
        if further:
            raise ValueError(f"the cells also differ in {', '.join(further)}; pairs are for two settings")
        means = self.means
        return {(getattr(s, x), getattr(s, y)): means[name] for name, s in self.cells.items()}


def settings_grid(
    settings: TrainingSettings, values: Mapping[str, Sequence[Any]]
) -> dict[str, TrainingSettings]:
    """All combinations of some values of settings, by names such as `batch_size=16,temperature=0.05`.

    Args:
        settings: The other settings.
        values: Setting → the values to try.

    Raises:
        ValueError: No setting, an unknown one or `seed`; no values, one that is listed twice, or one that
            the settings refuse.

    >>> list(settings_grid(TrainingSettings(), {"learning_rate": (2e-5, 5e-5), "temperature": [0.1]}))
    ['learning_rate=2e-05,temperature=0.1', 'learning_rate=5e-05,temperature=0.1']
    """
    if not values:
        raise ValueError(
            "the grid is empty; give a setting with values to try, as {'temperature': (0.02, 0.05)}"
        )
    if "seed" in values:
        raise ValueError(f"seed cannot be in the grid: {SEEDS_APART}")
    columns = {}
    for name, tried in values.items():
        if isinstance(tried, str) or not isinstance(tried, Sequence | np.ndarray) or not len(tried):
            raise ValueError(f"{name} must be a list of values to try, got {tried!r}")
        columns[name] = [value.item() if isinstance(value, np.generic) else value for value in tried]
        twice = [value for at, value in enumerate(columns[name]) if value in columns[name][:at]]
        if twice:
            raise ValueError(f"{name} lists {twice[0]!r} twice; a cell is trained once")
    cells = {}
    for chosen in product(*columns.values()):
        changes = dict(zip(columns, chosen, strict=True))
        name = ",".join(f"{field}={value}" for field, value in changes.items())
        cells[name] = with_settings(settings, changes)
    return cells


def grid_search(
    space: Workspace,
    tag: str,
    encoder: BiEncoder | TwoEncoders,
    data: TrainingData,
    cells: Mapping[str, TrainingSettings],
    validation: Collection,
    *,
    seeds: Sequence[int] | None = None,
    training_length: int | None = None,
) -> Grid:
    """Train with each of several settings and each seed, always from the same encoder, and compare on dev.

    What a training found is kept in `runs/<collection>/training/<tag>-<cell>-s<seed>.json` and read from
    there the next time. One that was interrupted goes on from its last checkpoint. The weights are removed
    at the end of each: to have a model with the best settings, train once more with them.

    Args:
        space: The workspace to read from and write to.
        tag: The grid's name.
        encoder: The encoder to start from; it is not changed.
        data: The training data.
        cells: Name → settings; `settings_grid` makes all combinations of some values. Their seed is
            replaced by each of `seeds`.
        validation: The queries to compare by, and to select each training's best checkpoint by.
        seeds: The seeds to train each cell with; by default the profile's.
        training_length: Passages are cut to this many tokens, in place of the profile's `training_length`.

    Raises:
        ValueError: Before anything is trained: no cells or seeds; cells that are no settings, the same
            settings or chosen by different metrics; `validation` is a test split; or an error of `train`.
    """
    seeds = list(space.profile.seeds if seeds is None else seeds)
    if validation.split == "test":
        raise ValueError("settings are compared on dev queries, never on test: give the dev split")
    metric = _check_cells(cells, seeds)
    start = with_passage_length(encoder, training_length or space.profile.training_length)
    planned = {
        (name, seed): (f"{tag}-{name}-s{seed}", replace(settings, seed=seed))
        for name, settings in cells.items()
        for seed in seeds
    }
    for full_name, settings in planned.values():  # so that no error comes after hours
        space.kept_training(full_name)
        check_teacher(settings, data, start)
        check_training(settings, data, validation.queries.values(), [tag])
        prepare_steps(settings, data, settings.num_negatives)
    trainings: dict[str, dict[int, Training]] = {name: {} for name in cells}
    with tqdm(planned.items(), f"{tag}: cells {len(cells)}, seeds {len(seeds)}", unit="training") as bar:
        for (name, seed), (full_name, settings) in bar:
            bar.set_postfix_str(f"{name}, seed {seed}")
            trainings[name][seed] = _train_cell(space, full_name, start, data, settings, validation)
    return Grid(dict(cells), trainings, metric, validation.split, len(validation.queries))


def _check_cells(cells: Mapping[str, TrainingSettings], seeds: Sequence[int]) -> str:
    """The metric of the cells; refuses cells and seeds that cannot be compared."""
    if not cells:
        raise ValueError("there are no cells to train; give settings by name, as settings_grid makes them")
    for name, settings in cells.items():
        if not isinstance(settings, TrainingSettings):
            raise ValueError(
                f"cell {name!r} must be TrainingSettings, as settings_grid makes them, got {settings!r}"
            )
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be one or more different numbers, got {seeds}")
    for (one, its), (other, others) in combinations(cells.items(), 2):
        if replace(its, seed=0) == replace(others, seed=0):
            raise ValueError(f"cells {one!r} and {other!r} are the same settings; {SEEDS_APART}")
    metrics = {settings.metric for settings in cells.values()}
    if len(metrics) > 1:
        raise ValueError(f"metric must be the same in all cells to compare them, got {sorted(metrics)}")
    return metrics.pop()


def _train_cell(
    space: Workspace,
    full_name: str,
    start: BiEncoder | TwoEncoders,
    data: TrainingData,
    settings: TrainingSettings,
    validation: Collection,
) -> Training:
    """Read what is kept of a training, or train, keep that and remove the weights."""
    record = describe_training(start, data, settings, validation, [full_name])
    path = space.kept_training(full_name)
    kept = read_kept_training(path, record)
    if kept is None:
        folder = space.training_folder(data.name, full_name, record)
        keep_training(path, train(start, data, folder, settings, validation=validation, tags=[full_name]))
        shutil.rmtree(folder)
        kept = read_kept_training(path, record)
    return kept
