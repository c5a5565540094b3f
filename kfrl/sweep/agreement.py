"""Whether early stopping would have kept the right runs: correlation of early ranks with final ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kfrl.sweep.folder import FINISHED, SweepFolder, SweepPlan, TrialState, domain_of

SHARES = (0.1, 0.25, 0.5)
"""Shares of a run at which its rank is compared with its final rank."""
FEWEST = 5
"""Fewest runs that are ranked."""


def rank_agreement(curves: Sequence[Sequence[tuple[float, float]]], ends: Sequence[float], total: float) -> list[float]:
    """Spearman's correlation of the objective at each of `SHARES` with the final objective; NaN where undefined.

    Args:
        curves: For each run its points (steps or epochs, objective), in order.
        ends: The final objective of each run.
        total: Steps or epochs of a whole run.
    """
    from scipy.stats import spearmanr

    found = []
    for share in SHARES:
        so_far = [[value for done, value in curve if done <= share * total] for curve in curves]
        known = all(so_far) and len({values[-1] for values in so_far}) > 1 and len(set(ends)) > 1
        found.append(float(spearmanr([values[-1] for values in so_far], ends).statistic) if known else float("nan"))
    return found


def agreement_lines(folder: SweepFolder, plan: SweepPlan, states: Mapping[str, TrialState]) -> list[str]:
    """For each subject a line with the rank agreement of its finished runs, which ASHA would have compared.

    Empty for a sweep with early stopping.
    """
    domain = domain_of(plan)
    subjects: dict[str, list[str]] = {}
    for trial in plan.trials if plan.early_stopping is None else ():
        state = states[trial.name]
        if not trial.teacher and state.state == FINISHED and state.objective is not None:
            subjects.setdefault(str(trial.settings[domain.subject]), []).append(trial.name)
    lines = []
    for subject, names in subjects.items():
        if len(names) < FEWEST:
            continue
        curves = [domain.curve(folder.path / name) for name in names]
        ends = [states[name].objective or 0.0 for name in names]
        total = float(plan.trial(names[0]).settings[domain.budget])
        ranks = rank_agreement(curves, ends, total)
        shown = ", ".join(f"{100 * share:.0f} %: {rank:.2f}" for share, rank in zip(SHARES, ranks, strict=True))
        lines.append(f"{subject}, {len(names)} runs, rank along the way against the end (Spearman): {shown}")
    return lines
