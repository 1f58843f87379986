# SPDX-License-Identifier: BSD-3-Clause
"""One-shot methods: masks and corrected weights from calibration data, no training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from gossamer.prune.batches import Forward, each_batch, run_batch
from gossamer.prune.batchnorm import batchnorm_layers
from gossamer.prune.calibrated_layer import CalibratedLayer
from gossamer.prune.calibration import TARGETS, Calibration
from gossamer.prune.calibration_report import CalibrationReport, LayerResult
from gossamer.prune.fingerprint import digest
from gossamer.prune.groups import Group, hyperparameters
from gossamer.prune.journal import Journal
from gossamer.prune.layer import LayerForm
from gossamer.prune.parts import Admm, Part, Swap
from gossamer.prune.pattern import CustomPattern
from gossamer.prune.problem import LayerProblem
from gossamer.prune.ranks import ALONE, Ranks
from gossamer.prune.reconstruction import Reconstruction
from gossamer.prune.sparsifier import Sparsifier
from gossamer.prune.targets import Config, find_targets, kept_dense, one_shot_config

__all__ = ["OneShot"]


class OneShot(Sparsifier):
    """Prunes layer by layer, in the order in which the model calls them.

        sparsifier = OneShot("2:4", ByWanda(), Swap(), LeastSquares(), target="dense-target")
        sparsifier.prepare(model)
        print(sparsifier.calibrate(batches))
        sparsifier.squash_mask()

    Between `calibrate` and `squash_mask` the masks are live, for fine-tuning; `step` leaves them as
    they are. Linear layers and 2-D convolutions are accepted.

    Args:
        pattern: as for `Sparsifier`.
        *parts: what finds mask and weights of a layer, called one after the other with a
            `LayerProblem` (gossamer.prune.parts).
        scope: where weights compete: "row" or "tensor".
        target: what a layer is to reproduce: "sparse-inputs", its output on the inputs it gets
            from the model pruned so far; "dense-inputs", on the inputs it got in the dense model;
            "dense-target", the dense model's output from the inputs of the model pruned so far,
            which makes up for the errors of the layers before it.
        damping: δ of H = G + δI, as a fraction of the mean of diag(G). Where H is not positive
            definite all the same, it is raised tenfold, up to 1, and the report says so.
        held_out_correction: finds, for each layer, the damping of the correction to the dense
            target by cross-validation over four parts of the batches, from `damping` to no
            correction at all. Without it, and for a single batch, it is `damping`.
        reconstruction: tunes the kept weights of each block after its layers; None does not.
            Blocks are members of an `nn.ModuleList` or `nn.Sequential` that run once in a pass.

    Raises:
        TypeError: a part cannot be called.
        ValueError: a hyperparameter is not accepted.
    """

    def __init__(
        self,
        pattern: str | CustomPattern,
        *parts: Part,
        scope: str = "tensor",
        target: str = "sparse-inputs",
        damping: float = 0.01,
        held_out_correction: bool = False,
        reconstruction: Reconstruction | None = None,
    ) -> None:
        for part in parts:
            if isinstance(part, type) or not callable(part):
                raise TypeError(
                    f"part {part!r}: something that is called with a LayerProblem is accepted, "
                    "such as ByWanda() or a function"
                )
        if target not in TARGETS:
            raise ValueError(f"target {target!r}: one of {list(TARGETS)} is accepted")
        self.reconstruction = reconstruction
        self.held_out_correction = held_out_correction
        self.parts = parts
        self.target = target
        self.report: CalibrationReport | None = None
        super().__init__(pattern, scope, damping=damping)

    def check(self, settings: Mapping[str, Any]) -> None:
        """Competition ends at the layer; the damping is a fraction."""
        super().check(settings)
        if settings["scope"] == "global":
            raise ValueError(
                "scope 'global': 'row' or 'tensor' is accepted, since layers are pruned one after "
                "the other; give each its own sparsity in prepare's config instead"
            )
        damping = settings["damping"]
        if not isinstance(damping, int | float) or not 0 <= damping <= 1:
            raise ValueError(f"damping {damping!r}: a number from 0 to 1 is accepted")
        for part in self.parts:
            if isinstance(part, Admm):
                part.check(settings["scope"])
            elif isinstance(part, Swap):
                part.check(settings["pattern"])

    def solve(self, problem: LayerProblem) -> None:
        """Finds the mask, and perhaps a corrected weight, of one layer: calls the parts."""
        if not self.parts:
            raise NotImplementedError(
                f"{type(self).__name__} has no parts: pass some, e.g. OneShot('2:4', ByWanda()), "
                "or override solve(problem)"
            )
        for part in self.parts:
            part(problem)

    def calibrate(
        self,
        batches: Iterable[Any],
        *,
        forward: Forward = run_batch,
        progress: Callable[[LayerResult, int, int], None] | None = None,
        resume: str | Path | None = None,
        offload: bool = False,
        batchnorm: bool = False,
        alone: bool = False,
    ) -> CalibrationReport:
        """Prunes all prepared weights with the inputs that they see, and counts a step.

        The batches are held in memory and run several times. The model runs in evaluation mode,
        without gradients, where it is; it comes back in the mode it had. A second call starts from
        the weights that the first has left, corrected ones with zeros perhaps; the report says so.

        Args:
            batches: what the model is called with: a dict by name, a list or tuple in order,
                anything else as it is.
            forward: another way to call it, e.g. `lambda model, batch: model(batch[0])`.
            progress: called with each layer's result, its number from 1, and how many there are.
            resume: a folder that keeps each layer and block when it is done. After a crash the same
                call with the same model, method, batches and forward, compared by what they hold,
                goes on behind the last of them, with the very result of a run that was never
                stopped (on as many threads). The folder is the caller's to delete. None keeps
                nothing.
            offload: keeps the inputs of blocks in the memory of the CPU while others run.
            batchnorm: takes the running statistics of BatchNorm layers anew at the end; for masks
                without corrected weights (`recalibrate_batchnorm`).
            alone: whether this process calibrates by itself where torch.distributed is initialised.
                Else all ranks call this together, each with batches of its own, which count as
                those of one run, and have the same masks and weights afterwards, bit by bit.
                `resume` keeps a folder a rank.

        Returns:
            What became of each layer; also kept as `report`.

        Raises:
            RuntimeError: nothing is prepared, the model fails with a batch, or another rank failed.
            TypeError: `batches` is a single batch, the model does not take one, or with `resume`
                something has no contents to compare, such as a generator that `forward` holds.
            ValueError: no batch, a layer that no batch reaches, inputs that are not finite, a Gram
                matrix that cannot be factored, a folder with the state of another run. The model
                is as it was then.
        """
        self._need_groups("calibrate")
        assert self.model is not None
        layers = [self._layer(group) for group in self.groups]
        if batchnorm:
            batchnorm_layers(self.model)
        ranks = ALONE if alone else Ranks.current()
        with ranks.together():
            held = list(each_batch("calibrate", batches))
            journal = None if resume is None else self._journal(resume, held, forward, ranks)
        walk = Calibration(
            self.model,
            layers,
            held,
            forward,
            self.target,
            self.reconstruction,
            progress,
            self._left_dense(),
            journal,
            offload,
            batchnorm,
            self.held_out_correction,
            self._needs_gram(),
            ranks,
        )
        self.report = walk.run()
        self._set_steps(self.step_count + 1)
        for group in self.groups:
            self._mask(group).updated.fill_(self.step_count)
        return self.report

    def _needs_gram(self) -> bool:
        """Whether a part may read a Gram matrix; so does whoever writes a `solve` of their own."""
        if type(self).solve is not OneShot.solve:
            return True
        return any(getattr(part, "needs_gram", True) for part in self.parts)

    def _journal(
        self, folder: str | Path, batches: list[Any], forward: Forward, ranks: Ranks
    ) -> Journal:
        """The steps that a folder holds of this very run: of all that the result depends on."""
        passing = ("model", "groups", "report", "enable_mask_update", "_steps", "_loaded")
        own = {key: value for key, value in vars(self).items() if key not in passing}
        masks = [(group["tensor_fqn"], hyperparameters(group)) for group in self.groups]
        run = {
            "model": digest(self.model, "the model"),
            "batches": digest(batches, "batches"),
            "forward": digest(forward, "forward"),
            "method": digest([type(self), own, masks], "the method"),
            "number of ranks": str(ranks.count),
        }
        return Journal(Path(folder) / f"rank-{ranks.own}" if ranks.count > 1 else folder, run)

    def prepare(self, model: nn.Module, config: Config = None) -> nn.Module:
        """As `Sparsifier.prepare`; without a config, layers for logits and routers stay dense.

        The first is the layer which `model.get_output_embeddings()` returns, where there is one.
        Routers are linear layers named so with an output for each expert beside them.
        """
        if config is None and self._loaded is None:
            config = one_shot_config(model)
        return super().prepare(model, config)

    def _left_dense(self) -> dict[str, str]:
        """Weights of layers and embeddings that are not pruned, with the reason."""
        assert self.model is not None
        pruned = {id(self.dense_weight(group)): group["tensor_fqn"] for group in self.groups}
        kept, found = kept_dense(self.model), {}
        for fqn, target in find_targets(self.model).items():
            is_table = isinstance(target.module, nn.Embedding | nn.EmbeddingBag)
            unknown = target.unseen_by_calibration()
            if fqn in pruned.values() or not (target.is_layer_weight or is_table or unknown):
                continue
            if id(target.weight) in pruned:
                found[fqn] = f"the same parameter as '{pruned[id(target.weight)]}', pruned there"
            elif is_table:
                found[fqn] = "an embedding"
            elif unknown or fqn in kept:
                found[fqn] = unknown or kept[fqn]
            elif len(target.places) > 1:
                found[fqn] = "shared with other modules"
            else:
                found[fqn] = target.obstacle() or "not chosen"
        return found

    def _step(self) -> None:
        if not any(int(self._mask(group).updated) for group in self.groups):
            raise RuntimeError(
                f"step: {type(self).__name__} needs the inputs of the layers; call "
                "calibrate(batches) first"
            )

    def _check_finished(self, found: Mapping[str, str | None]) -> None:
        if all(found.values()):
            raise RuntimeError(
                f"squash_mask: {type(self).__name__} has found no masks yet, so that the model "
                "would stay dense; call calibrate(batches) first, or take the masks off as they "
                "are: gossamer.prune.squash_masks(model)"
            )

    def _layer(self, group: Group) -> CalibratedLayer:
        weight = self.dense_weight(group)
        try:
            form = LayerForm.of(group["module"], weight)
        except ValueError as error:
            raise ValueError(f"calibrate: '{group['tensor_fqn']}' {error}") from None
        present = self._mask(group).chosen()  # Calibration begins with dense layers.

        def problem(dense: Any, gram: Any) -> LayerProblem:
            pattern = self.pattern_of(group)
            assert pattern is not None
            return LayerProblem(
                fqn=group["tensor_fqn"],
                dense=dense,
                gram=gram,
                pattern=pattern,
                scope=group["scope"],
                segment=form.segment,
                damping=group["damping"],
                present=None if present is None else form.matrices(present),
                gradient=None if weight.grad is None else form.matrices(weight.grad.float()),
            )

        return CalibratedLayer(
            group["tensor_fqn"],
            group["module"],
            weight,
            self._mask(group),
            form,
            problem,
            self._solve_and_check,
        )

    def _solve_and_check(self, problem: LayerProblem) -> None:
        self.solve(problem)
        ours = all(type(part).__module__.startswith("gossamer.") for part in self.parts)
        problem.check(verify=not ours or type(self).solve is not OneShot.solve)
