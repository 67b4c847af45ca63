"""The records of a logger in memory: one run for each call of `fit`."""

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_adamax.callbacks._measurement import Measurement
from keras_adamax.callbacks._variable_names import (
    Architecture,
    architecture_of,
    are_of_one_model,
    have_one_shape,
    renaming,
    some,
)
from keras_adamax.records import Block, Moment, Records, to_lines


class Runs:
    """The records by run, and the run that is being made.

    Args:
        owner: Name of the logger's class, for messages.

    Attributes:
        records: All records.
        run: Number of the run that is being made.
        renamed: Present name of a variable to the one in the records, where
            they differ.
    """

    def __init__(self, owner: str):
        self._owner = owner
        self.replace(Records())
        self.begin_fit()

    def replace(self, records: Records) -> None:
        """Takes records, of which no model is known."""
        self.records = records
        self._models: dict[int, weakref.ref[Any]] = {}
        self._architectures: dict[int, Architecture] = {}

    def begin_fit(self) -> None:
        """Forgets what it knew of the last `fit`."""
        self.run = 0
        self.renamed: dict[str, str] = {}
        self._is_other_model = False
        self._recorded_names: tuple[str, ...] = ()

    def check_model(self, model: Any) -> None:
        """Warns if the last run in memory is of another model."""
        run = self.records.last_run
        if run is not None:
            self.check_variables(
                model, "`records`", run, self.records.variables(run)
            )

    def check_variables(
        self, model: Any, where: str, run: int, recorded: Sequence[str]
    ) -> None:
        """Warns if variables were recorded of another model.

        Args:
            model: The model that is trained.
            where: Where they were recorded, for the message.
            run: The run that they are of.
            recorded: Their names.
        """
        architecture = architecture_of(model)
        names = [name for name, _ in architecture]
        if (
            not recorded
            or not names
            or self._run_of(model) is not None
            or have_one_shape(self._architectures.get(run, ()), architecture)
            or are_of_one_model(recorded, names)
        ):
            return
        if not self._is_other_model:
            warnings.warn(
                f"{self._owner}: {where} holds the records of another "
                f"model, with {some(recorded)}; this one has {some(names)}. "
                "They are kept, and a run of its own is added.",
                stacklevel=2,
            )
        self._is_other_model = True

    def begin(
        self,
        model: Any,
        epoch: int,
        run_in_file: int | None,
        read_step: Callable[[], int],
    ) -> int:
        """Begins a run, or chooses the one to go on with.

        Args:
            model: The model that is trained.
            epoch: The first one; a fresh run begins with 0.
            run_in_file: The last run of the CSV file.
            read_step: Gives the updates that the optimizer has applied.

        Returns:
            The updates after which to go on with the run; 0 for a new one.
        """
        known = [self.records.last_run, run_in_file]
        last = max((run for run in known if run is not None), default=None)
        step = 0
        if epoch > 0 and last is not None and not self._is_other_model:
            step = read_step()
        if step == 0 or last is None:  # a fresh optimizer continues nothing
            self.run = 0 if last is None else last + 1
        else:
            own = self._run_of(model)
            self.run = last if own is None else own
            self._rename(model, self._architectures.get(self.run, ()))
        self._models[self.run] = weakref.ref(model)
        return step

    def happened(self, step: int) -> Callable[[Moment], bool]:
        """Which moments were, when the run had made so many updates."""
        run = self.run
        return lambda moment: moment.run != run or moment.step <= step

    def go_on_after(self, step: int, in_file: list[Block]) -> None:
        """Removes later records of the run.

        Args:
            step: Updates of the optimizer.
            in_file: The records to go on with where memory has none.
        """
        if any(block.moment.run == self.run for block in self.records.blocks):
            self.records.keep(self.happened(step))
        else:
            self.records = Records(in_file)
        self._recorded_names = self.records.variables(self.run)

    def restore(
        self,
        model: Any,
        run: int,
        blocks: Sequence[Block],
        architecture: Architecture,
    ) -> None:
        """Goes on with a run from a backup.

        Args:
            model: The model that is trained.
            run: The run.
            blocks: All records in the backup.
            architecture: The variables then.
        """
        self.run = run
        self._keep_others(blocks)
        self._rename(model, architecture)
        self._models[run] = weakref.ref(model)
        self.records = Records([*blocks, *self.records.blocks])
        self._recorded_names = self.records.variables(run)

    def under_recorded_names(
        self, measurement: Measurement, model: Any
    ) -> Measurement:
        """A measurement with the names that the run is recorded with."""
        if self._recorded_names and not self.renamed:
            self.renamed = renaming(self._recorded_names, measurement.names)
        self._recorded_names = ()
        if self.run not in self._architectures:
            self._architectures[self.run] = architecture_of(model)
        return measurement.renamed(self.renamed)

    def architecture(self, model: Any) -> Architecture:
        """The variables of the run, under their recorded names."""
        return self._architectures.get(self.run, architecture_of(model))

    def _run_of(self, model: Any) -> int | None:
        """The last run in memory that was made with this very model."""
        present = {block.moment.run for block in self.records.blocks}
        runs = [run for run, its in self._models.items() if its() is model]
        return max(present.intersection(runs), default=None)

    def _rename(self, model: Any, recorded: Architecture) -> None:
        """Goes on under the names in the records, if the shapes are equal."""
        own = architecture_of(model)
        if have_one_shape(recorded, own):
            self._architectures[self.run] = recorded
            self.renamed = {
                name: old
                for (old, _), (name, _) in zip(recorded, own, strict=True)
                if name != old
            }

    def _keep_others(self, restored: Sequence[Block]) -> None:
        """Keeps in memory only what a backup does not have.

        That is what the logger has seen of other models. A run that differs
        from the one of its number in the backup gets a new number.

        Args:
            restored: The records in the backup.
        """
        first: dict[int, Block] = {}
        for block in restored:
            first.setdefault(block.moment.run, block)
        last = max((self.run, self.records.last_run or 0, *first))
        numbers: dict[int, int | None] = {}  # `None`: the backup has it
        kept = []
        for block in self.records.blocks:
            old = block.moment.run
            if old not in numbers:
                numbers[old] = old
                if old in first or old == self.run:
                    # As text, where NaN equals NaN.
                    is_same = to_lines(first.get(old, block)) == to_lines(block)
                    last += not is_same
                    numbers[old] = None if is_same else last
            new = numbers[old]
            if new is not None:
                kept.append(
                    block._replace(moment=block.moment._replace(run=new))
                )
        self.records = Records(kept)

        def moved(by_run: Mapping[int, Any]) -> dict[int, Any]:
            return {
                new: by_run[old]
                for old, new in numbers.items()
                if new is not None and old in by_run
            }

        self._models = moved(self._models)
        self._architectures = moved(self._architectures)

    def __getstate__(self) -> dict[str, Any]:
        # A copy cannot have the models.
        return {**self.__dict__, "_models": {}}
