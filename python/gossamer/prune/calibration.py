# SPDX-License-Identifier: BSD-3-Clause
"""Layer by layer through a model: inputs, a problem, its parts, and on with the pruned weight."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from gossamer.prune.batches import Forward
from gossamer.prune.batchnorm import average_statistics, recalibrate_batchnorm
from gossamer.prune.calibrated_layer import CalibratedLayer, Norms, Sums
from gossamer.prune.calibration_report import BlockResult, CalibrationReport, LayerResult
from gossamer.prune.capture import common_order, evaluating, find_order
from gossamer.prune.correction import held_out_damping, joined
from gossamer.prune.experts import unreached_members
from gossamer.prune.gathering import Gathering
from gossamer.prune.inputs import Inputs
from gossamer.prune.journal import Journal
from gossamer.prune.kept_calls import Kept
from gossamer.prune.places import Places
from gossamer.prune.problem import LayerProblem
from gossamer.prune.ranks import ALONE, Ranks
from gossamer.prune.reconstruction import Reconstruction
from gossamer.prune.selection import check_kept
from gossamer.prune.stages import Stage, StageWatch, find_stages, output_of
from gossamer.prune.walk import Walk

__all__ = ["Calibration"]

TARGETS = ("sparse-inputs", "dense-inputs", "dense-target")


class Calibration:
    """One walk through a model. The model is as it was where it raises.

    Args:
        model: in any mode; it runs in evaluation mode, without gradients.
        layers: what is pruned.
        batches: run again for each layer, so that they must be the same each time.
        forward: how the model is called with a batch.
        target: "sparse-inputs" (reproduce W·X on the inputs of the model pruned so far),
            "dense-inputs" (on those of the dense model) or "dense-target" (reproduce what the dense
            model gives, W·X₀, from the inputs of the model pruned so far).
        reconstruction: what tunes each block after its layers; None for nothing.
        progress: called with each layer's result, its number from 1, and how many there are.
        left_dense: what is left out from the start, with the reason, for the report.
        journal: keeps each step, and has those that were made before a crash.
        offload: keeps the inputs of blocks in the memory of the CPU.
        recalibrates: takes the statistics of BatchNorm anew at the end.
        held_out: finds the damping of corrections on batches that are held out.
        needs_gram: whether parts read Gram matrices. Where none does, and nothing else, wide layers
            have none: their error is that of some inputs.
        ranks: processes that calibrate together, each with other batches.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[CalibratedLayer],
        batches: Sequence[Any],
        forward: Forward,
        target: str,
        reconstruction: Reconstruction | None = None,
        progress: Callable[[LayerResult, int, int], None] | None = None,
        left_dense: Mapping[str, str] | None = None,
        journal: Journal | None = None,
        offload: bool = False,
        recalibrates: bool = False,
        held_out: bool = False,
        needs_gram: bool = True,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        self._held_out = held_out
        self._tunes_half = reconstruction is not None and reconstruction.held_out
        self._left_dense = left_dense or {}
        self._journal = journal
        self._recalibrates = recalibrates
        self._model = model
        self._layers = {layer.fqn: layer for layer in layers}
        self._batches = batches
        self._forward = forward
        self._inputs = Inputs(model, self._layers, batches, forward, offload)
        self._target = target
        self._gathering = Gathering(
            self._inputs,
            len(batches),
            target,
            needs_gram or target == "dense-target" or reconstruction is not None,
            held_out,
            self._tunes_half,
            ranks,
        )
        self._reconstruction = reconstruction
        self._progress = progress

    def run(self) -> CalibrationReport:
        """Prunes all layers.

        Raises:
            ValueError: there is no batch, a layer is never called, or its inputs are not finite.
        """
        with torch.inference_mode(False):  # Weights that it makes could not be trained.
            return self._run()

    def _run(self) -> CalibrationReport:
        with self._ranks.together():
            self._check_start()
        self._ranks.check_equal({fqn: layer.weight for fqn, layer in self._layers.items()})
        saved = {
            fqn: (layer.weight.data.clone(), layer.mask.mask.clone())
            for fqn, layer in self._layers.items()
        }
        self._inputs.dense.update({fqn: weight for fqn, (weight, _) in saved.items()})
        places = Places(self._model)
        try:
            with evaluating(self._model):
                report = self._walk(places)
            if self._recalibrates:
                with self._ranks.together():
                    recalibrate_batchnorm(self._model, self._batches, forward=self._forward)
                average_statistics(self._model, self._ranks, len(self._batches))
            with self._ranks.together():
                places.check()
            return report
        except BaseException as error:
            moved = places.refusal()
            places.restore()
            for fqn, (weight, mask) in saved.items():
                self._layers[fqn].weight.data = weight
                self._layers[fqn].mask.mask.copy_(mask)
            if moved and isinstance(error, Exception) and str(error) != moved:
                raise ValueError(moved) from error  # What it led to.
            raise

    def _check_start(self) -> None:
        if not self._batches:
            raise ValueError(
                "calibrate: there are no batches; pass at least one, for instance a list of 8 "
                "tensors of 64 samples"
            )
        for fqn, layer in self._layers.items():
            if not bool(layer.weight.isfinite().all()):
                raise ValueError(
                    f"'{fqn}' holds NaN or infinity, which no calibration can keep; load weights "
                    "that are finite, or leave it dense: prepare(model, {'<name>': None, '*': ...})"
                )

    def _walk(self, places: Places) -> CalibrationReport:
        for layer in self._layers.values():
            layer.mask.mask.fill_(True)
        modules = {fqn: layer.module for fqn, layer in self._layers.items()}
        watch = StageWatch(find_stages(self._model, list(modules.values())))
        ranks = self._ranks
        with ranks.together():
            order = find_order(self._model, modules, self._batches, self._forward, watch)
            places.check()
        order = common_order(ranks.each(order), ranks.own)
        watch.refuse(ranks.each(watch.refusals()))
        report = CalibrationReport(self._target, left_dense=dict(self._left_dense))
        if order.unwatched is not None:
            report.remarks.append(
                "routers could not be watched, so that experts are known by the numbers of their "
                f"rows alone: {order.unwatched}"
            )
        walk = Walk(report, order, self._layers, self._journal, ranks)
        self._leave_unreached(walk)
        for stage in watch.stages():
            parts = {id(part) for part in stage.module.modules()}
            own = {fqn: stage for fqn, module in modules.items() if id(module) in parts}
            self._inputs.stages.update(own)
        walk.report.not_alone.update(watch.not_alone(self._model, list(modules.values())))
        for number, group in enumerate(order.groups):
            if not walk.restore():
                self._prune_group(group, walk, places)
            later = order.groups[number + 1 :]
            block = self._inputs.stages.get(group[0])
            is_last = not any(self._inputs.stages.get(fqn) is block for own in later for fqn in own)
            pruned = {result.fqn for result in walk.report.layers}
            inside = [fqn for fqn in self._layers if self._inputs.stages.get(fqn) is block]
            inside = [fqn for fqn in inside if fqn in pruned]  # Others are to stay dense.
            if not (block and is_last and inside and self._reconstruction):
                continue
            if walk.restore():
                continue
            if not self._paired(block):
                why = "the pruned model gives it other rows than the dense one"
                other = {self._name_of(block): why}
                walk.report.not_alone.update(other)
                walk.keep((), not_alone=other)
            else:
                left = {result.fqn for result in walk.report.layers if not result.tunable}
                result = self._reconstruct(block, inside, self._reconstruction, left, walk.halves)
                walk.report.blocks.append(result)
                walk.keep(inside, blocks=[result])
        return walk.report

    def _leave_unreached(self, walk: Walk) -> None:
        """Leaves experts dense that no batch reaches; refuses other layers that none does."""
        order, modules = walk.order, {fqn: layer.module for fqn, layer in self._layers.items()}
        reached = {fqn for fqn, samples in order.samples.items() if samples}
        left = unreached_members(self._model, modules, reached)
        called = {fqn for group in order.groups for fqn in group}
        uncalled = [fqn for fqn in modules if fqn not in called and fqn not in left]
        if uncalled:
            raise ValueError(
                f"calibrate: no batch reaches {', '.join(map(repr, uncalled))}; pass batches that "
                "use all layers (a layer counts where it is called, not where its weight is read), "
                "or leave these dense: prepare(model, {'<name>': None, '*': ...})"
            )
        walk.report.left_dense.update(left)
        groups = ([fqn for fqn in group if fqn not in left] for group in order.groups)
        order.groups = [group for group in groups if group]

    def _prune_group(self, group: Sequence[str], walk: Walk, places: Places) -> None:
        """Prunes layers that always get the same input."""
        layers, order = [self._layers[fqn] for fqn in group], walk.order
        routed = not order.routed.isdisjoint(group)
        sums, remarks = self._gathering.sums(layers[0], order.expected(group[0]), routed=routed)
        inputs = sums.energies.shape[-1]
        if order.now_and_then(group[0]) and sums.tokens < inputs:
            # Of a layer that is called now and then, an expert say, so few inputs say nothing.
            some = "a router picks its inputs" if routed else "some batches never reach it"
            why = f"{some}, and it saw {sums.tokens} inputs of {inputs}"
            left = dict.fromkeys(group, why)
            walk.report.left_dense.update(left)
            walk.keep((), left_dense=left)
            return
        results = []
        for layer in layers:
            start = time.perf_counter()
            with self._ranks.together():
                places.check()
                result = self._solve(layer, sums, walk.halves)
            self._ranks.take_first_(layer.weight.data, layer.mask.mask)
            self._ranks.take_first_(*(walk.halves[fqn] for fqn in group if fqn in walk.halves))
            result.remarks[:0] = remarks
            result.seconds = time.perf_counter() - start
            results.append(result)
            walk.report.layers.append(result)
            with self._ranks.together():
                if self._progress is not None:
                    self._progress(result, len(walk.report.layers), len(self._layers))
        walk.keep(group, layers=results)

    # --- One layer, one block ---------------------------------------------------------------------

    def _reconstruct(
        self,
        stage: Stage,
        names: Sequence[str],
        reconstruction: Reconstruction,
        left: Collection[str],
        halves: dict[str, Tensor],
    ) -> BlockResult:
        """Tunes the weights of a block, but for those that are left as they are."""
        begin = time.perf_counter()
        inside = [self._layers[fqn] for fqn in names]
        wanted: Kept[Tensor] = Kept(self._inputs.memory())
        with self._ranks.together(), self._inputs.as_dense():
            for call in self._inputs.of_stage(stage, True):
                wanted.append(output_of(stage, call))
        for layer in inside:
            # What the mask drops would count as a kept weight's size.
            layer.weight.data = torch.where(layer.mask.mask, layer.weight.data, 0)
        inside = [layer for layer in inside if layer.fqn not in left]
        weights = [cast(nn.Parameter, layer.weight) for layer in inside]
        half = None
        if self._tunes_half:
            half = [halves.pop(layer.fqn, layer.weight.data) for layer in inside]
        calls = self._inputs.of_stage(stage, False)
        tuned = reconstruction.run(stage, weights, calls, wanted, half, self._ranks)
        self._ranks.take_first_(*(weight.data for weight in weights))
        name, seconds = self._name_of(stage), time.perf_counter() - begin
        return BlockResult(name, tuned.before, tuned.after, seconds, tuned.part)

    def _paired(self, stage: Stage) -> bool:
        with self._ranks.together():
            found = self._inputs.paired(stage)
        return all(self._ranks.each(found))

    def _name_of(self, stage: Stage) -> str:
        return next(name for name, own in self._model.named_modules() if own is stage.module)

    def _problem(self, layer: CalibratedLayer, sums: Sums | Norms) -> LayerProblem:
        tokens = max(sums.tokens, 1)
        dense = layer.form.matrices(self._inputs.dense[layer.fqn].float())
        if isinstance(sums, Norms):
            problem = layer.problem(dense, None)
            problem.squares, problem.sample = sums.energies / tokens, sums.sample
        else:
            total = sums.total()
            problem = layer.problem(dense, total.gram / tokens)
            problem.cross = None if total.cross is None else total.cross / tokens
        problem.tokens = sums.tokens
        return problem

    def _solve(
        self, layer: CalibratedLayer, sums: Sums | Norms, halves: dict[str, Tensor]
    ) -> LayerResult:
        tokens = max(sums.tokens, 1)
        problem = self._problem(layer, sums)
        folds = [] if isinstance(sums, Norms) else sums.folds
        remarks = []
        if len(folds) > 1 and self._held_out and problem.cross is not None:
            # Of some layers, experts say, whole folds see nothing.
            seen = [fold for fold in folds if fold.tokens]
            problem.correction = held_out_damping(problem.dense, seen) if seen[1:] else math.inf
            problem.notes["correction"] = problem.correction
            if not seen[1:]:
                remarks.append("not corrected: no batches to hold out")
        if not sums.tokens:
            raise ValueError(
                f"'{layer.fqn}': it was called with no inputs at all; pass batches with at least "
                "one sample"
            )
        if not float(problem.energies.sum()) > 0:
            raise ValueError(
                f"'{layer.fqn}': all of its {sums.tokens} inputs are zero, so that no weight "
                "matters; calibrate with data that makes it work, or leave it dense"
            )
        asked = problem.damping
        problem.correct()
        layer.solve(problem)
        assert problem.mask is not None
        check_kept(layer.fqn, layer.form.shape, problem.pattern, problem.mask)
        if problem.fields and problem.fields.sparsity and bool(problem.mask.all()):
            remarks.append("so small that the pattern drops nothing")
        inputs = problem.dense.shape[-1]
        if problem.solution is not None and sums.tokens < inputs:
            remarks.append(f"fitted to {sums.tokens} tokens, fewer than its {inputs} inputs")
        solved = problem.kept_weight
        if not bool(solved.isfinite().all()):
            raise ValueError(
                f"'{layer.fqn}': the corrected weight is not finite; raise damping above "
                f"{problem.damping:g}"
            )
        self._write(layer, problem)
        tunes = self._tunes_half and self._inputs.stages.get(layer.fqn) is not None
        tunable = not tunes or len(folds) < 2 or all(joined(folds[i::2]).tokens for i in (0, 1))
        if not tunable:
            remarks.append("not tuned: one half of the batches never reaches it")
        if len(folds) > 1 and tunes and tunable and problem.solution is not None:
            half = problem.fitted_to(joined(folds[::2]))
            halves[layer.fqn] = layer.form.parameter(half).to(layer.weight.dtype)
        target_error = None
        if isinstance(sums, Sums) and sums.dense_gram is not None:
            target_error = problem.target_error(sums.dense_gram / tokens)
        return LayerResult(
            fqn=layer.fqn,
            shape=list(layer.form.shape),
            pattern=str(problem.pattern),
            tokens=sums.tokens,
            zeros=1.0 - float(problem.mask.float().mean()),
            error=problem.error(),
            target_error=target_error,
            damping=problem.damping,
            asked_damping=asked,
            notes=dict(problem.notes),
            error_tokens=_sampled(problem),
            tunable=tunable,
            remarks=remarks,
            zeros_before=float((problem.dense == 0).float().mean()),
        )

    def _write(self, layer: CalibratedLayer, problem: LayerProblem) -> None:
        assert problem.mask is not None
        layer.mask.mask.copy_(layer.form.parameter(problem.mask))
        if problem.solution is None and problem.cross is None:
            return  # The dense values stay under the mask.
        value = layer.form.parameter(problem.kept_weight)
        # Another memory than the dense weight's, which is held, but laid out as it: channels last.
        layer.weight.data = torch.empty_like(layer.weight.data).copy_(value)


def _sampled(problem: LayerProblem) -> int | None:
    """How many inputs the error is over, where it is not over all of them."""
    rows = 0 if problem.sample is None else problem.sample.shape[1]
    return rows if 0 < rows < problem.tokens else None
