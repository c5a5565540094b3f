"""The classifiers' training loop: stages, epochs and updates, with metrics, evaluation, checkpoints and signals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import update_bn

from kfrl.errors import UserError
from kfrl.nets.memory_format import channels_last
from kfrl.runs.checkpoint import Checkpoint, save_checkpoint
from kfrl.runs.loggers import Loggers
from kfrl.runs.metrics import MetricsWriter
from kfrl.supervised.classifiers import Teacher, load_classifier, save_classifier
from kfrl.supervised.data.batches import Batch
from kfrl.supervised.evaluate import ImageEvaluation, evaluate
from kfrl.supervised.methods.base import AnyMethod, Predictor, Progress
from kfrl.supervised.run import Run
from kfrl.training import trainer as training
from kfrl.training.proof import Proof
from kfrl.training.ranks import ranks
from kfrl.training.signals import noting_signals
from kfrl.training.status import Status
from kfrl.training.trainer import Display, Outcome

CHECK_EVERY = 50
"""Updates between two checks that the loss is finite; each check waits for the device."""

SHOW_EVERY = 0.25
"""Seconds between two updates of the display."""

PREPARED_ON = 8_192
"""Number of training images for a method's `prepare`, and for new batch norm statistics."""


@dataclass(frozen=True)
class ImageStatus(Status):
    """The status of a classifier's run."""

    losses: dict[str, float]
    """Means of the loss terms in the current epoch."""
    best: float | None
    """The best accuracy on validation images so far."""


class _Loss(nn.Module):
    """A method's loss as a module's forward pass, which DistributedDataParallel needs."""

    def __init__(self, method: AnyMethod, net: nn.Module) -> None:
        """Hold the method and the net that it trains."""
        super().__init__()
        self.method, self.net = method, net

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The terms of the loss."""
        return self.method.losses(self.net, batch, progress)


class Trainer(training.Trainer[Run]):
    """The trainer of a classifier's run."""

    def __init__(self, run: Run, display: Display, checkpoint: Checkpoint | None = None) -> None:
        """Build the net and its optimiser, from a checkpoint if there is one."""
        super().__init__(run, display)
        self.config = run.config
        self.ranks = ranks()
        self.device = torch.device(run.config.device)
        built = run.take_built()
        self.method, self.net = built.method, built.net
        maps = channels_last(self.net)
        for teacher in run.teachers:
            channels_last(teacher.net)
        self.images = run.loader(run.train, maps, augmented=True)
        self.validation = run.loader(run.validation, maps)
        self.test = run.loader(run.data.test, maps)
        self.stages = list(self.method.stages(self.net))
        self.epochs = sum(stage.epochs for stage in self.stages)
        self.updates, self._epoch, self._batch = 0, 0, 0
        self._sums: dict[str, Tensor] = {}
        self._proof = Proof()
        self._best: float | None = None
        self._last_validation: float | None = None
        self._best_epoch = 0
        self._kept: dict[str, Tensor] = {}
        self._optimiser = self._begin_stage(self._stage)
        if checkpoint is not None:
            with checkpoint.understood():
                self._restore(checkpoint)
        else:
            self._prepare()
        self._metrics = self._open_metrics(None if checkpoint is None else self.updates)
        self._session_updates = self.updates
        self._started = self._saved = time.monotonic()
        self._shown = 0.0
        self._noted = 0

    def _open_metrics(self, resumed_at: int | None) -> MetricsWriter | None:
        if not self.ranks.first:
            return None
        self._loggers = Loggers(self.config.log_to, self.run.folder.path, asdict(self.config))
        return MetricsWriter(self.run.folder.path, resumed_at, self._loggers)

    def _prepare(self) -> None:
        """Let the method prepare its net on at most `PREPARED_ON` training images."""
        batches = [batch.images for batch in self._unaugmented()]
        self.net.eval()
        for line in self.method.prepare(self.net, batches):
            self.display.say(line)
        self.method.train_mode(self.net, self._stage)

    # --- progress ---------------------------------------------------------------------------------------------

    @property
    def _stage(self) -> int:
        """The stage of the current epoch; the last one when all are done."""
        return self._stage_of(self._epoch)

    def _stage_of(self, epoch: int) -> int:
        ends = [sum(stage.epochs for stage in self.stages[: index + 1]) for index in range(len(self.stages))]
        return next((index for index, end in enumerate(ends) if epoch < end), len(self.stages) - 1)

    def progress(self, updates: int | None = None) -> Progress:
        """Progress before the next update, or after `updates` updates."""
        done = self.updates if updates is None else updates
        per_epoch = len(self.images)
        stage = self._stage_of(done // per_epoch)
        before = sum(earlier.epochs for earlier in self.stages[:stage]) * per_epoch
        in_stage = (done - before) / (self.stages[stage].epochs * per_epoch)
        return Progress(stage, min(1.0, in_stage), min(1.0, done / (self.epochs * per_epoch)))

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self._epoch >= self.epochs

    # --- training ---------------------------------------------------------------------------------------------

    def train(self) -> Outcome:
        """Train until all epochs are done, a signal comes or the loss is not finite; then save."""
        with noting_signals(self.stop):
            try:
                while not self.finished and not self.stopping:
                    self._run_epoch()
            except RuntimeError as error:
                self.fail(self._lost(error))
        if self._metrics is not None:
            self._metrics.close()
            self._loggers.close()
        if self.failure is None:
            self.save()
        return Outcome(self.net, self._epoch, stopped_by=self.signal, failure=self.failure, resumable=self.resumable)

    def stop(self, number: int) -> None:
        """End between two updates, as signal `number` does; from any thread."""
        self._noted = number
        if self.ranks.world == 1:
            self.signal = number

    def _lost(self, error: RuntimeError) -> str:
        """The message for an error that another process's end has caused; any other error is raised again."""
        words = str(error)
        if self.ranks.world == 1 or not (isinstance(error, dist.DistError) or "gloo" in words or "NCCL" in words):
            raise error
        return (
            f"Another of the {self.ranks.world} processes of this run has ended, so process {self.ranks.rank} ends too."
        )

    def _run_epoch(self) -> None:
        self.method.train_mode(self.net, self._stage)
        for batch in self.images.epoch(self.config.seed, self._epoch, self._batch):
            self.update(batch)
            if self.ranks.world > 1:
                # All processes stop after the same update.
                self.signal = self.ranks.largest(self._noted) or None
            if self._batch % CHECK_EVERY == 0 or self._batch == len(self.images):
                self._check_losses()
            self._tick()
            if self.stopping:
                break
        if self.failure is None and self._batch == len(self.images):
            self._end_epoch()

    def update(self, batch: Batch) -> None:
        """One step of the optimiser on one batch."""
        progress = self.progress()
        self.method.schedule(self.net, progress)
        for group in self._optimiser.param_groups:
            group["lr"] = group["base_lr"] * self._rate(progress.in_stage)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            terms = self._loss(batch, progress)
        self.fail(self._proof.complaint(terms, self._has_gradient), resumable=False)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        self._optimiser.zero_grad()
        total.backward()
        self._optimiser.step()
        self.method.after_update(self.net, progress)
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + term.detach().double()
        self.updates += 1
        self._batch += 1

    def _has_gradient(self, term: Tensor) -> bool:
        trained = [parameter for group in self._optimiser.param_groups for parameter in group["params"]]
        gradients: Sequence[Tensor | None] = torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True)
        return any(gradient is not None and bool(gradient.any()) for gradient in gradients)

    def _rate(self, in_stage: float) -> float:
        """The learning rate as a share of the initial one."""
        if self.config.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * in_stage))
        if self.config.schedule == "steps":
            return 0.1 ** sum(in_stage >= milestone for milestone in self.config.milestones)
        return 1.0

    def _check_losses(self) -> None:
        wrong = [name for name, value in self._means(1).items() if not math.isfinite(value)]
        if wrong:
            self.fail(
                f"The loss is not finite ({', '.join(wrong)}) in epoch {self._epoch + 1}. A lower --lr than "
                f"{self.config.lr:g} may help.",
                resumable=False,
            )

    def _shared_loss(self) -> Callable[[Batch, Progress], dict[str, Tensor]]:
        """The method's loss; with several processes, its backward pass averages their gradients."""
        if self.ranks.world == 1:
            return partial(self.method.losses, self.net)
        # The loss of a process is the mean over its share of the batch, and all shares are equal.
        return DistributedDataParallel(_Loss(self.method, self.net), find_unused_parameters=True)

    def _begin_stage(self, index: int) -> torch.optim.Optimizer:
        """Freeze what this stage does not train, and start its optimiser."""
        stage, config = self.stages[index], self.config
        self.net.requires_grad_(False)
        for group in stage.groups:
            for parameter in group.parameters:
                parameter.requires_grad_(True)
        self.method.train_mode(self.net, index)
        self._loss = self._shared_loss()
        groups = [
            {
                "params": list(group.parameters),
                "base_lr": config.lr * group.lr_scale,
                "weight_decay": config.weight_decay if group.weight_decay else 0.0,
            }
            for group in stage.groups
            if group.parameters
        ]
        if config.optimizer == "adam":
            return torch.optim.Adam(groups, config.lr, fused=True)
        return torch.optim.SGD(groups, config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)

    def _end_epoch(self) -> None:
        stage = self._stage
        values = self._validate()
        self._epoch, self._batch = self._epoch + 1, 0
        values |= {f"losses/{name}": value for name, value in self._means(len(self.images)).items()}
        values |= {
            "charts/epoch": float(self._epoch),
            "charts/learning_rate": self._optimiser.param_groups[0]["lr"],
            "time/images_per_sec": self._images_per_sec(),
            "time/elapsed_sec": self.elapsed_sec,
        }
        if self._metrics is not None:
            self._metrics.log(self.updates, values | self.method.metrics(self.net))
        self._sums = {}
        self._shown = 0.0  # the next update shows the new scores
        if self._stage != stage:
            if self.stages[stage].complete and self._kept:
                self.net.load_state_dict(self._kept)
            self._best, self._best_epoch, self._kept = None, 0, {}
            self._optimiser = self._begin_stage(self._stage)

    def _means(self, updates: int) -> dict[str, float]:
        """Means of the loss terms over `updates` updates and all processes."""
        if not self._sums:
            return {}
        sums = self.ranks.total(torch.stack([value.double() for value in self._sums.values()]))
        return dict(zip(self._sums, (sums / (updates * self.ranks.world)).tolist(), strict=True))

    def _validate(self) -> dict[str, float]:
        """Evaluate on the validation images, and keep the student if it is the best so far."""
        if not len(self.run.validation):
            return {}
        # Each process has the batch norm statistics of its own share.
        self.ranks.follow(self.net.buffers())
        values: dict[str, float] = {}
        for name, result in self.evaluate_on_validation().items():
            suffix = f"_{name}" if name else ""
            values |= {f"val/accuracy{suffix}": result.accuracy, f"val/loss{suffix}": result.loss}
        self._last_validation = accuracy = values["val/accuracy"]
        chosen = self._in_last_stage or self.stages[self._stage].complete
        if self.config.keep == "best" and chosen and (self._best is None or accuracy > self._best):
            self._best, self._best_epoch = accuracy, self._epoch + 1
            self._keep()
        return values

    @property
    def _in_last_stage(self) -> bool:
        return self._stage == len(self.stages) - 1

    def _keep(self) -> None:
        """Keep the student, and the nets that are scored beside it, so that all scores are of one epoch."""
        self._kept = {}
        beside = self.method.others(self.net, final=True) or self.method.further(self.net)
        if self.stages[self._stage].complete or beside:
            self._kept = {name: tensor.detach().clone() for name, tensor in self.net.state_dict().items()}
        if self._in_last_stage:
            self._save_student()

    # --- evaluation -------------------------------------------------------------------------------------------

    def evaluate_on_validation(self) -> dict[str, ImageEvaluation]:
        """Scores of the student alone, under "", and of `Method.others` and `elsewhere`, under their names."""
        student = self._student().eval()
        self.net.eval()
        predictors: dict[str, Predictor] = {"": student, **self.method.others(self.net, final=False)}
        classes = len(self.run.task.classes)
        scores = {name: evaluate(predict, self.validation, classes) for name, predict in predictors.items()}
        return scores | self._elsewhere(final=False)

    def _elsewhere(self, final: bool) -> dict[str, ImageEvaluation]:
        return {
            name: evaluate(other.predict, other.images, len(other.classes))
            for name, other in self.method.elsewhere(self.net, final).items()
        }

    def finish(self) -> dict[str, Any]:
        """Evaluate the kept student, and the others in its epoch, on the test images, once; write `eval.json`.

        Afterwards the net has the weights of the kept epoch.

        Returns:
            The content of `eval.json`.
        """
        self.ranks.wait()
        self.ranks.follow(self.net.buffers())
        kept = load_classifier(self.run.folder.student)
        if self._kept:
            self.net.load_state_dict(self._kept)
        updates = kept.card.epochs * len(self.images)
        self.method.schedule(self.net, self.progress(max(0, updates - 1)))
        self.net.eval()
        student = kept.net.to(self.device)
        channels_last(student)
        classes = self.run.task.classes
        alone = evaluate(student, self.test, len(classes))
        others = {
            name: evaluate(predict, self.test, len(classes)).to_dict()
            for name, predict in self.method.others(self.net, final=True).items()
        }
        others |= {name: score.to_dict() for name, score in self._elsewhere(final=True).items()}
        test = alone.to_dict(classes)
        result = {
            "epochs": self._epoch,
            "kept_epoch": kept.card.epochs,
            "teacher_sha256": list(self.config.teacher_sha256),
            "validation_accuracy": kept.card.validation_accuracy,
            "test": test,
            "others": others,
            "layer_weights": self.method.metrics(self.net),
            "trained_parameters": self._trained(),
            "deployed_parameters": sum(parameter.numel() for parameter in kept.net.parameters()),
            "versions": {"torch": torch.__version__},
        }
        if self.ranks.first:
            self._write_scores(kept, result)
        # Without this, the first process to finish would end while the others still evaluate.
        self.ranks.wait()
        return result

    def _write_scores(self, kept: Teacher, result: dict[str, Any]) -> None:
        """Save the student with its scores, what the method saves beside it, and `eval.json`."""
        for name, (net, card) in self.method.further(self.net).items():
            path = self.run.folder.path / f"{name}.safetensors"
            scores = result["others"].get(name, {})
            save_classifier(
                path, net, replace(card, epochs=kept.card.epochs, evaluation=scores, commit=kept.card.commit)
            )
        card = kept.card
        self.run.save_student(
            kept.net, card.net, card.epochs, card.validation_accuracy, result["test"], caveat=card.caveat
        )
        self.run.folder.write_evaluation(result)

    def _trained(self) -> int:
        """Number of parameters that any stage trains."""
        moved = {id(p): p for stage in self.stages for group in stage.groups for p in group.parameters}
        return sum(parameter.numel() for parameter in moved.values())

    # --- saving -----------------------------------------------------------------------------------------------

    def _save_student(self) -> None:
        if not self.ranks.first:
            return
        chosen = self._best is not None and self._in_last_stage
        validation, epoch = (self._best, self._best_epoch) if chosen else (self._last_validation, self._epoch)
        name = self.method.shipped_net(self.run.task)
        caveat = self.method.caveat(self.net)
        self.run.save_student(self._student(), name, epoch, validation, {}, caveat)

    def _student(self) -> nn.Module:
        """The exported student, with batch norm statistics of its own."""
        student = self.method.export(self.net)
        if self.method.mixes_statistics(self.net):
            # Dropout draws random numbers here, which must not change those of the run.
            with torch.random.fork_rng():
                update_bn((batch.images for batch in self._unaugmented() if len(batch.labels) > 1), student)
        return student

    def _unaugmented(self) -> Iterator[Batch]:
        """At most `PREPARED_ON` training images in batches, without augmentation."""
        return islice(self.images.ordered(), -(-PREPARED_ON // self.config.batch_size))

    def save(self) -> None:
        """Write a checkpoint, and the current student unless a better one is written; only in the first process."""
        if not self.ranks.first:
            return
        tensors = {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        for index, held in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": value for name, value in held.items() if value is not None}
        tensors |= {f"method.{name}": tensor for name, tensor in self.method.state().items()}
        tensors |= {f"sums.{name}": tensor for name, tensor in self._sums.items()}
        tensors |= {f"kept.{name}": tensor for name, tensor in self._kept.items()}
        tensors["rng"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        state = {
            "epoch": self._epoch,
            "batch": self._batch,
            "updates": self.updates,
            "best": self._best,
            "best_epoch": self._best_epoch,
            "last_validation": self._last_validation,
            "processes": self.ranks.world,
            "elapsed_sec": self.elapsed_sec,
            "teacher_sha256": list(self.config.teacher_sha256),
            "answers_sha256": list(self.config.answers_sha256),
        }
        save_checkpoint(self.run.folder.checkpoints, self.updates, tensors, state)
        if self._best is None or not self._in_last_stage:
            self._save_student()

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        processes = state.get("processes", 1)
        if processes != self.ranks.world:
            launcher = "without torchrun" if processes == 1 else f"with torchrun --nproc-per-node {processes}"
            raise UserError(
                f"The number of processes of {self.run.folder.path} is {processes}, and now it is {self.ranks.world}. "
                f"Resume the run {launcher}."
            )
        self.run.check_inputs(checkpoint)
        self._epoch, self._batch, self.updates = state["epoch"], state["batch"], state["updates"]
        self._best, self._best_epoch, self._elapsed = state["best"], state["best_epoch"], state["elapsed_sec"]
        self._last_validation = state["last_validation"]
        self._optimiser = self._begin_stage(self._stage)
        checkpoint.load_net(self.net)
        held: dict[int, dict[str, Tensor]] = {}
        for name, tensor in checkpoint.prefixed("optimiser.").items():
            index, _, key = name.partition(".")
            held.setdefault(int(index), {})[key] = tensor
        self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": held})
        for parameter, statistics in self._optimiser.state.items():
            for key, value in statistics.items():
                if value.shape == parameter.shape:
                    # Fused kernels read memory in order, so the statistics need the parameter's memory layout.
                    statistics[key] = torch.empty_like(parameter).copy_(value)
        self.method.load_state(self.net, checkpoint.prefixed("method."))
        self._sums = {name: tensor.to(self.device) for name, tensor in checkpoint.prefixed("sums.").items()}
        self._kept = {name: tensor.to(self.device) for name, tensor in checkpoint.prefixed("kept.").items()}
        torch.set_rng_state(checkpoint.tensors["rng"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint.tensors["cuda_rng"], self.device)

    # --- showing ----------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if self.ranks.first:
            self.save_if_due(self.config.checkpoint_every)
        if time.monotonic() - self._shown > SHOW_EVERY:
            self.display.update(self._status())
            self._shown = time.monotonic()

    def _images_per_sec(self) -> float:
        done = (self.updates - self._session_updates) * self.config.batch_size
        return done / max(time.monotonic() - self._started, 1e-9)

    def _status(self) -> ImageStatus:
        rate, per_epoch = self._images_per_sec(), len(self.images)
        left = (self.epochs * per_epoch - self.updates) * self.config.batch_size
        return ImageStatus(
            done=self.updates / per_epoch,
            total=self.epochs,
            rate=rate,
            eta_sec=left / rate if rate else None,
            student=self._last_validation,
            student_at=self._epoch,
            part=self.stages[self._stage].name,
            metrics=self.method.metrics(self.net),
            losses={name: float(value) / max(1, self._batch) for name, value in self._sums.items()},
            best=self._best,
        )
