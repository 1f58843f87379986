# SPDX-License-Identifier: BSD-3-Clause
"""Layer by layer through a model: inputs, a problem, its parts, and on with the pruned weight."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from gossamer.prune.batches import Forward
from gossamer.prune.batchnorm import recalibrate_batchnorm
from gossamer.prune.calibrated_layer import CalibratedLayer, Norms, Sums
from gossamer.prune.calibration_report import BlockResult, CalibrationReport, LayerResult
from gossamer.prune.capture import Order, evaluating, find_order
from gossamer.prune.correction import held_out_damping, joined
from gossamer.prune.experts import unreached_members
from gossamer.prune.gathering import Gathering
from gossamer.prune.inputs import Inputs
from gossamer.prune.journal import Journal
from gossamer.prune.kept_calls import Kept
from gossamer.prune.places import Places
from gossamer.prune.problem import LayerProblem
from gossamer.prune.reconstruction import Reconstruction
from gossamer.prune.selection import check_kept
from gossamer.prune.stages import Stage, StageWatch, find_stages, output_of

__all__ = ["Calibration"]

TARGETS = ("sparse-inputs", "dense-inputs", "dense-target")


@dataclass
class _Walk:
    """The report so far, in which order layers are called, and how many steps are behind."""

    report: CalibrationReport
    order: Order
    steps: int = 0


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
    ) -> None:
        self._held_out = held_out
        self._tunes_half = reconstruction is not None and reconstruction.held_out
        self._half: dict[str, Tensor] = {}  # Weights fitted to the first fold alone.
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
        if not self._batches:
            raise ValueError(
                "calibrate: there are no batches; pass at least one, for instance a list of 8 "
                "tensors of 64 samples"
            )
        saved = {
            fqn: (layer.weight.data.clone(), layer.mask.mask.clone())
            for fqn, layer in self._layers.items()
        }
        for fqn, (weight, _) in saved.items():
            if not bool(weight.isfinite().all()):
                raise ValueError(
                    f"'{fqn}' holds NaN or infinity, which no calibration can keep; load weights "
                    "that are finite, or leave it dense: prepare(model, {'<name>': None, '*': ...})"
                )
        self._inputs.dense.update({fqn: weight for fqn, (weight, _) in saved.items()})
        places = Places(self._model)
        try:
            with evaluating(self._model):
                report = self._walk(places)
            if self._recalibrates:
                recalibrate_batchnorm(self._model, self._batches, forward=self._forward)
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

    def _walk(self, places: Places) -> CalibrationReport:
        for layer in self._layers.values():
            layer.mask.mask.fill_(True)
        modules = {fqn: layer.module for fqn, layer in self._layers.items()}
        watch = StageWatch(find_stages(self._model, list(modules.values())))
        order = find_order(self._model, modules, self._batches, self._forward, watch)
        places.check()
        walk = _Walk(CalibrationReport(self._target, left_dense=dict(self._left_dense)), order)
        self._leave_unreached(walk)
        for stage in watch.stages():
            parts = {id(part) for part in stage.module.modules()}
            own = {fqn: stage for fqn, module in modules.items() if id(module) in parts}
            self._inputs.stages.update(own)
        walk.report.not_alone.update(watch.not_alone(self._model, list(modules.values())))
        for number, group in enumerate(order.groups):
            if not self._restore(walk):
                self._prune_group(group, walk)
            places.check()
            later = order.groups[number + 1 :]
            block = self._inputs.stages.get(group[0])
            is_last = not any(self._inputs.stages.get(fqn) is block for own in later for fqn in own)
            pruned = {result.fqn for result in walk.report.layers}
            inside = [fqn for fqn in self._layers if self._inputs.stages.get(fqn) is block]
            inside = [fqn for fqn in inside if fqn in pruned]  # Others are to stay dense.
            if not (block and is_last and inside and self._reconstruction):
                continue
            if self._restore(walk):
                continue
            if not self._inputs.paired(block):
                why = "the pruned model gives it other rows than the dense one"
                other = {self._name_of(block): why}
                walk.report.not_alone.update(other)
                self._keep(walk, (), not_alone=other)
            else:
                left = {result.fqn for result in walk.report.layers if not result.tunable}
                result = self._reconstruct(block, inside, self._reconstruction, left)
                walk.report.blocks.append(result)
                self._keep(walk, inside, blocks=[result])
        return walk.report

    def _leave_unreached(self, walk: _Walk) -> None:
        """Leaves experts dense that no batch reaches; refuses other layers that none does."""
        order, modules = walk.order, {fqn: layer.module for fqn, layer in self._layers.items()}
        reached = {fqn for fqn, samples in order.samples.items() if samples}
        left = unreached_members(self._model, modules, reached)
        uncalled = [fqn for fqn, calls in order.calls.items() if not sum(calls)]
        uncalled = [fqn for fqn in uncalled if fqn not in left]
        if uncalled:
            raise ValueError(
                f"calibrate: no batch reaches {', '.join(map(repr, uncalled))}; pass batches that "
                "use all layers (a layer counts where it is called, not where its weight is read), "
                "or leave these dense: prepare(model, {'<name>': None, '*': ...})"
            )
        walk.report.left_dense.update(left)
        groups = ([fqn for fqn in group if fqn not in left] for group in order.groups)
        order.groups = [group for group in groups if group]

    def _prune_group(self, group: Sequence[str], walk: _Walk) -> None:
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
            self._keep(walk, (), left_dense=left)
            return
        results = []
        for layer in layers:
            start = time.perf_counter()
            result = self._solve(layer, sums)
            result.remarks[:0] = remarks
            result.seconds = time.perf_counter() - start
            results.append(result)
            walk.report.layers.append(result)
            if self._progress is not None:
                self._progress(result, len(walk.report.layers), len(self._layers))
        self._keep(walk, group, layers=results)

    # --- Steps on disk ----------------------------------------------------------------------------

    def _keep(self, walk: _Walk, changed: Sequence[str], **found: Any) -> None:
        """Writes a step: what was found, and the weights and masks that it changed."""
        if self._journal is not None:
            entry: dict[str, Any] = {key: found.get(key, {}) for key in ("left_dense", "not_alone")}
            for key in ("layers", "blocks"):
                entry[key] = [asdict(result) for result in found.get(key, ())]
            entry["weights"] = {fqn: self._layers[fqn].weight.data for fqn in changed}
            entry["masks"] = {fqn: self._layers[fqn].mask.mask for fqn in changed}
            entry["halves"] = {fqn: self._half[fqn] for fqn in changed if fqn in self._half}
            self._journal.save(walk.steps, entry)
        walk.steps += 1

    def _restore(self, walk: _Walk) -> bool:
        """Takes the next step over from the journal; False where it was never completed."""
        entry = None if self._journal is None else self._journal.load(walk.steps)
        if entry is None:
            return False
        for fqn, weight in entry["weights"].items():
            layer = self._layers[fqn]
            layer.weight.data = weight.to(layer.weight.device)
            layer.mask.mask.copy_(entry["masks"][fqn])
            if fqn in entry["halves"]:
                self._half[fqn] = entry["halves"][fqn].to(layer.weight.device)
        walk.report.layers += [LayerResult(**result) for result in entry["layers"]]
        walk.report.blocks += [BlockResult(**result) for result in entry["blocks"]]
        walk.report.left_dense.update(entry["left_dense"])
        walk.report.not_alone.update(entry["not_alone"])
        walk.steps += 1
        return True

    # --- One layer, one block ---------------------------------------------------------------------

    def _reconstruct(
        self,
        stage: Stage,
        names: Sequence[str],
        reconstruction: Reconstruction,
        left: Collection[str],
    ) -> BlockResult:
        """Tunes the weights of a block, but for those that are left as they are."""
        begin = time.perf_counter()
        inside = [self._layers[fqn] for fqn in names]
        wanted: Kept[Tensor] = Kept(self._inputs.memory())
        with self._inputs.as_dense():
            for call in self._inputs.of_stage(stage, True):
                wanted.append(output_of(stage, call))
        for layer in inside:
            # What the mask drops would count as a kept weight's size.
            layer.weight.data = torch.where(layer.mask.mask, layer.weight.data, 0)
        inside = [layer for layer in inside if layer.fqn not in left]
        weights = [cast(nn.Parameter, layer.weight) for layer in inside]
        half = None
        if self._tunes_half:
            half = [self._half.pop(layer.fqn, layer.weight.data) for layer in inside]
        calls = self._inputs.of_stage(stage, False)
        tuned = reconstruction.run(stage, weights, calls, wanted, half)
        name, seconds = self._name_of(stage), time.perf_counter() - begin
        return BlockResult(name, tuned.before, tuned.after, seconds, tuned.part)

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

    def _solve(self, layer: CalibratedLayer, sums: Sums | Norms) -> LayerResult:
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
            self._half[layer.fqn] = layer.form.parameter(half).to(layer.weight.dtype)
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
