"""The driver process of a sweep, which runs the trials of a plan with Ray Tune. `kfrl sweep` starts it.

Tune's actors train the trials in a thread, so that an actor loads PyTorch once for many trials. The results are in
the runs' folders and in the sweep's CSV; Tune's own files are never read again.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from kfrl.errors import UserError
from kfrl.sweep.descendants import adopt_orphans, alive, descendants, end_descendants, watch
from kfrl.sweep.estimate import OBJECT_STORE
from kfrl.sweep.folder import (
    FAILED,
    FINISHED,
    PRUNED,
    RUNNING,
    STOPPED,
    WAITING,
    SweepFolder,
    SweepPlan,
    TrialState,
    domain_of,
    levels,
    untaught,
)
from kfrl.sweep.space import EarlyStopping, Trial
from kfrl.training.status import Status

RETRIES = 2
"""How often a trial is resumed from its checkpoint after it failed, or after its process or node died."""
ATTEMPTS = 4
"""How often starting Ray is tried before the failure is raised."""
GRACE = 5.0
"""Seconds that a stopped run has to write its checkpoint."""
RAY_DIED = 3
"""Exit code after a process of Ray itself died."""
_STOP = threading.Event()


class Runner(tune.Trainable):
    """Trains one run after another; `step` reports once a second."""

    def setup(self, config: dict[str, Any]) -> None:
        """Prepare to start a trial, or to resume it from its folder."""
        self._folder = SweepFolder(Path(config["one"]["sweep"]))
        if not self._folder.exists:
            raise RuntimeError(f"{self._folder.path} is not on node {os.uname().nodename}: the storage is not shared.")
        self._plan = self._folder.read()
        self._domain = domain_of(self._plan)
        self._trial = self._plan.trial(config["one"]["trial"])
        self._state: str = config["one"]["state"]
        self._history: deque[tuple[float, float]] = deque()
        self._judged = self._plan.early_stopping is not None
        self._points: queue.Queue[tuple[float, float] | None] = queue.Queue()
        self._go_on, self._owed = threading.Semaphore(0), False
        self._told = -1.0
        if self._judged:
            # ASHA needs the earlier part of the curve, for the rungs that the trial has passed already.
            self._history.extend(self._domain.curve(self._folder.run(self._trial).path))
        self._session: Any = None
        self._status: Status | None = None
        self._stopping = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on with another trial in this process."""
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """The run's progress, after a second or at its end."""
        if self._history:
            return self._point(*self._history.popleft(), self._state)
        if self._state in (FINISHED, PRUNED):
            return {"state": self._state, "done": True}
        if self._thread is None:
            self._thread = threading.Thread(target=self._train, name="run", daemon=True)
            self._thread.start()
        if self._owed:
            self._owed = False
            self._go_on.release()
        try:
            point = self._points.get(timeout=1.0)
        except queue.Empty:
            return {**self._report(), "state": RUNNING}
        if point is not None:
            self._owed = True
            return self._point(*point, RUNNING)
        self._thread.join()
        if self._error is not None:
            return self._failed(self._error)
        return {**self._report(), **_known(self._status), "state": FINISHED, "done": True}

    def _point(self, done: float, objective: float, state: str) -> dict[str, Any]:
        """A point of the run's curve, as a report for ASHA."""
        return {"state": state, **_place(done, done / self._total), "objective": objective}

    @property
    def _total(self) -> float:
        return float(self._trial.settings[self._domain.budget])

    def _report(self) -> dict[str, Any]:
        status = self._status
        if status is None:
            return {**_place(0.0, 0.0), "rate": 0.0}
        # Under ASHA the objective is reported only at the steps where it was measured.
        known = {} if self._judged else _known(status)
        return {**_place(status.done, status.share), "rate": status.rate, **known}

    def _failed(self, error: BaseException) -> dict[str, Any]:
        """Report a UserError as a final failure. Raise any other error again, so that Tune retries the trial."""
        text = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))
        self._folder.error_file(self._trial).write_text(text)
        if isinstance(error, UserError):
            return {**self._report(), "state": FAILED, "done": True}
        raise error

    def _train(self) -> None:
        try:
            folder = self._folder.run(self._trial)
            if folder.config.is_file():
                self._session = self._domain.resume(folder.path)
            else:
                with suppress(OSError):
                    folder.path.rmdir()
                self._session = self._domain.start(self._folder.settings(self._trial, self._plan))
            self._session.complete(self)
        except BaseException as error:
            self._error = error
        finally:
            self._points.put(None)

    def update(self, status: Status) -> None:
        """Keep the run's status (the display's interface). Under ASHA, wait for its decision at each new objective."""
        self._status = status
        if self._judged and not self._stopping and status.student is not None:
            measured = status.done if status.student_at is None else status.student_at
            # If the status does not say when the objective was measured, a changed value means a new measurement.
            key = status.student if status.student_at is None else measured
            if key != self._told:
                self._told = key
                self._points.put((measured, status.student))
                self._go_on.acquire()
        if self._stopping:
            self._session.trainer.stop(signal.SIGTERM)

    def say(self, text: Any) -> None:
        """Write a line into the run's log (the display's interface)."""
        with self._folder.run(self._trial).log.open("a") as log:
            log.write(f"{text}\n")

    def cleanup(self) -> None:
        """Make a run that is still active write a checkpoint and end."""
        self._stopping = True
        self._go_on.release()
        if self._thread is not None and self._thread.is_alive():
            with suppress(RuntimeError, AttributeError):
                self._session.trainer.stop(signal.SIGTERM)
            self._thread.join(GRACE)
            if self._thread.is_alive():
                end_descendants()
                os._exit(1)


def _place(done: float, share: float) -> dict[str, float]:
    """Progress of a run, as reported to Tune, whose schedulers count time in whole numbers."""
    return {"done_units": done, "share": share, "permille": round(1000 * share)}


def _known(status: Status | None) -> dict[str, float]:
    return {} if status is None or status.student is None else {"objective": status.student}


class _Stopper(tune.Stopper):
    """Ends the sweep after a stop signal."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return _STOP.is_set()


class _Table(tune.Callback):
    """Writes the CSV, and reads the scores of runs that end."""

    def __init__(self, folder: SweepFolder, plan: SweepPlan, states: dict[str, TrialState]) -> None:
        self._folder, self._plan, self.states = folder, plan, states
        self._domain, self._written = domain_of(plan), 0.0

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        for trial in trials:
            self._take(trial)
        if time.monotonic() - self._written > 1.0:
            self.write()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._take(trial)
        name = trial.config["one"]["trial"]
        reported = (trial.last_result or {}).get("state")
        if reported in (WAITING, RUNNING, STOPPED) and not _STOP.is_set():
            self.states[name] = replace(self.states[name], state=PRUNED)

    def _take(self, trial: Any) -> None:
        name, result = trial.config["one"]["trial"], trial.last_result or {}
        known = self.states[name]
        if known.state in (FINISHED, PRUNED):
            return
        if "share" in result:
            objective = result.get("objective", known.objective)
            known = replace(
                known,
                done=result["done_units"],
                share=result["share"],
                rate=result.get("rate", 0.0),
                objective=objective,
            )
        reported = result.get("state")
        if reported == FINISHED and trial.status == "TERMINATED":
            plan_trial = self._plan.trial(name)
            known = self._folder.finished(known, plan_trial, self._domain)
        elif trial.status == "ERROR" or reported == FAILED:
            error_file = self._folder.error_file(self._plan.trial(name))
            text = error_file.read_text() if error_file.is_file() else "Its process died again and again."
            known = replace(known, state=FAILED, error=text.strip().splitlines()[-1] if text.strip() else "")
        elif trial.status == "RUNNING":
            known = replace(known, state=RUNNING)
        elif trial.status == "TERMINATED":
            known = replace(known, state=STOPPED)
        self.states[name] = known

    def write(self) -> None:
        self._folder.write_states(self._plan, self.states)
        self._written = time.monotonic()


def run(folder: SweepFolder, address: str | None, cores: int) -> None:
    """Run the unfinished trials of a sweep; returns when all have ended, or soon after a signal."""
    plan = folder.read()
    states = folder.states(plan)
    if not _STOP.is_set():
        connect(address, cores)
        _note_signals()  # Ray has replaced the handlers
    for trials in levels(plan):
        if _STOP.is_set():
            break
        for trial in trials:
            missing = untaught(trial, plan, states)
            if missing and states[trial.name].state not in (FINISHED, PRUNED):
                states[trial.name] = replace(
                    states[trial.name], state=FAILED, error=f"Its teacher did not finish: {', '.join(missing)}."
                )
        ready = [trial for trial in trials if not untaught(trial, plan, states)]
        _fit(folder, plan, ready, states)
    folder.write_states(plan, states)


def connect(address: str | None, cores: int) -> None:
    """Start Ray on this machine, or join a cluster.

    Raises:
        ConnectionError: no cluster answers at the address.
    """
    if address is not None:
        ray.init(address=address, log_to_driver=False)
        return
    for attempt in range(ATTEMPTS):
        try:
            ray.init(
                address="local",  # without it Ray looks for a running cluster, and may find the files of a dead one
                num_cpus=cores,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE,
                log_to_driver=False,
            )
            break
        except Exception:  # on a busy machine Ray's start can time out after half a minute
            if attempt == ATTEMPTS - 1 or _STOP.is_set():
                raise
            end_descendants()
    for pid in descendants():
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() in ("raylet", "gcs_server"):
                watch(partial(alive, pid), _ray_died)


def _ray_died() -> None:
    if not _STOP.is_set():
        end_descendants()
        os._exit(RAY_DIED)


def _fit(folder: SweepFolder, plan: SweepPlan, trials: Sequence[Trial], states: dict[str, TrialState]) -> None:
    """Run with Tune the trials of one level. Under ASHA, ended trials first report their curves, without training."""
    over = [trial for trial in trials if states[trial.name].state in (FINISHED, PRUNED)]
    left = [trial for trial in trials if trial not in over]
    if not left:
        return
    for trial in left:
        states[trial.name] = replace(states[trial.name], error="")
        folder.error_file(trial).unlink(missing_ok=True)
    told = over if plan.early_stopping is not None else []
    table = _Table(folder, plan, states)
    configs = [
        {"trial": trial.name, "sweep": str(folder.path), "state": states[trial.name].state} for trial in [*told, *left]
    ]
    resources = {trial.name: _resources(trial) for trial in trials}
    tuner = tune.Tuner(
        tune.with_resources(Runner, lambda config: resources[config["one"]["trial"]]),
        param_space={"one": tune.grid_search(configs)},
        tune_config=tune.TuneConfig(scheduler=_scheduler(plan), reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder.hidden),
            stop=_Stopper(),
            callbacks=[table],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        tuner.fit()
    finally:
        table.write()


def _resources(trial: Trial) -> Any:
    """A trial's resources, all on one node, because the processes of a run share memory."""
    return tune.PlacementGroupFactory([{"CPU": trial.cpu, "GPU": trial.gpu}])


class _Asha(ASHAScheduler):
    """ASHA for all trials except the sweep's own teachers, which other trials need to finish."""

    def __init__(self, teachers: set[str], **settings: Any) -> None:
        super().__init__(**settings)
        self._teachers = teachers

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if self._is_teacher(trial):
            return str(ASHAScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if not self._is_teacher(trial):
            super().on_trial_complete(tune_controller, trial, result)

    def _is_teacher(self, trial: Any) -> bool:
        return trial.config["one"]["trial"] in self._teachers


def _scheduler(plan: SweepPlan) -> Any:
    if plan.early_stopping is None:
        return None
    return _Asha({trial.name for trial in plan.trials if trial.teacher}, **_rungs(plan.early_stopping))


def _rungs(early: EarlyStopping) -> dict[str, Any]:
    return {
        "time_attr": "permille",
        "metric": "objective",
        "mode": "max",
        "max_t": 1000,
        "grace_period": max(1, round(1000 * early.grace)),
        "reduction_factor": early.factor,
        "stop_last_trials": False,
    }


def main(arguments: Sequence[str]) -> None:
    """Entry point of the driver process; its arguments are FOLDER PARENT_PID CORES [ADDRESS]."""
    folder, parent, cores = SweepFolder(Path(arguments[0])), int(arguments[1]), int(arguments[2])
    adopt_orphans()
    _note_signals()
    watch(lambda: os.getppid() == parent, _orphaned)
    try:
        run(folder, arguments[3] if len(arguments) > 3 else None, cores)
    finally:
        _STOP.set()
        ray.shutdown()


def _note_signals() -> None:
    def note(number: int, frame: FrameType | None) -> None:
        _STOP.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)


def _orphaned() -> None:
    """Stop when the command that started this process is gone: as on SIGTERM, but after at most `GRACE` seconds."""
    _STOP.set()
    time.sleep(GRACE)
    end_descendants()
    os._exit(1)
