"""Knowledge Flow (Liu et al., ICLR 2019) as a method of the A3C loop.

A run has up to three phases of the same game, all of whose steps count:

    linked     the student learns with its teachers' links: eq. 4 of the paper;
    imitation  a plain net, into which the linked one is folded, imitates it, where a teacher plays the run's own game;
    alone      the plain net goes on learning by itself.

With `fold_at: null` the run is the paper's: linked throughout.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.func import functional_call

from agents.answers import Answers, answers_for, open_all
from agents.batch import Batch, Context, Output
from agents.config import TrainConfig
from agents.methods.base import Method, NetSpec, Phase, Play, Review
from agents.observations import steps_for
from agents.policies import matched_policy
from agents.replay import SAMPLE_BYTES, Memory, smaller_than_measured
from agents.reviewing import Terms, review
from agents.shortfall import Shortfall
from agents.teachers.formats import Teacher
from envs.atari import AtariEnvs
from envs.games import Game
from envs.protocols import get_protocol
from kfrl.config import Count, Direction, Fraction, NonNegative, Positive
from kfrl.errors import UserError
from kfrl.flow import KnowledgeFlow, Link, links_by_depth
from kfrl.flow.fold import drop_biases, fold, foldable_layers, observations_needed
from kfrl.flow.mixing import tensor_name
from kfrl.flow.pool import TeacherPool
from kfrl.flow.settings import FlowSettings
from kfrl.losses.distillation import directed_kl
from kfrl.losses.knowledge_flow import dependence_loss, policy_kl_loss
from kfrl.machine import total_memory
from kfrl.nets import state_size
from kfrl.nets.adapters import build_transform
from kfrl.nets.atari.net import AtariNet
from kfrl.nets.links import hidden_layers
from kfrl.nets.memory_format import screens
from kfrl.optim.groups import ParameterGroup
from kfrl.seeding import REVIEW, stream

LINKED, IMITATION, ALONE = "linked", "imitation", "alone"
LAST_NEWCOMER = 0.8
"""Share of the linked phase after which no teacher is linked: its links would be folded before they are trained."""
CHOICE_OBSERVATIONS = 512
"""On which the teachers' channels are chosen and their scales matched."""
LINKED_ONLY = ("dependence_coef", "dependence_schedule", "layer_weights_lr")
"""Settings without effect in a run without a linked phase."""
IMITATION_ONLY = (
    "imitation_steps",
    "imitation_lr",
    "imitation_batch",
    "imitation_samples",
    "imitation_memory",
    "imitation_value_coef",
    "kl_direction",
    "kickstart_coef",
)
"""Settings without effect in a run without an imitation."""
POOL_ONLY = ("review_every", "review_games", "review_steps", "newcomer_share")
"""Settings without effect in a run whose teachers are all linked from the start."""
FOLD_BATCH = 128
WARM_UP = 0.05
FULL_RATE_AT = 0.2
"""From this 1 - R2 of the policy head's fold on, the imitation has its full learning rate."""
NEARLY_EXACT = 0.99
"""From this R2 of the policy head's fold on, there is no imitation."""
LEAST_HEAD_R2 = 0.5
"""Below this R2 a head's fold is not used: its weights are then so large that an imitation does not recover."""
MEASURED_MEMORY = 32_768
"""Samples that a worker remembers for the imitation in the published figures."""
STRETCH = 50
"""Mean number of steps that one of the two nets, linked or alone, plays before the next one is drawn."""


@dataclass(frozen=True)
class Settings(FlowSettings):
    """Knowledge Flow. Settings marked (+) go beyond the paper and are off in configs/atari/paper.yaml."""

    policy_kl_coef: NonNegative = 0.01
    """lambda_2, holds the policy near the previous iteration's (the paper samples 0.001, 0.01, 0.05)."""
    policy_kl_every: Count = 1
    """theta_old is taken anew after so many updates of a learner (+); 1: the previous iteration."""
    student_weight: Annotated[float, Gt(0.0), Lt(1.0)] | None = 0.01
    """p of the student at the start; None: an equal share with each linked teacher layer."""
    layer_weights_lr: Positive | None = 100.0
    """How far w moves while linked: so many times its mean gradient, by plain gradient descent (+). None: w is trained
    by the run's optimiser, like everything else, as in the paper."""
    choose_channels: bool = True
    """Start the Qs as a choice of the teachers' most useful channels on this game (+), else orthogonal."""
    match_scales: bool = False
    """Bring the teachers' hidden features to the scale of the fresh student's own (+), once, before training. For runs
    that stay linked: what is folded trains best at the teachers' own scale."""
    link_heads: Literal["never", "expert", "policies", "always"] = "expert"
    """Link policy and value heads too (+): of teachers of the same game (expert), of all, or of none. policies: expert;
    but where no teacher plays the game and the student learns from rewards right after the fold, the policies of all
    that have the game's own actions, which meet by meaning."""
    linked_teachers: Count | None = None
    """How many of the teachers are linked at a time (+); the others are a pool from which one comes where one goes.
    None: all, from start to end."""
    review_every: Count = 50_000
    """Steps between two reviews of what each linked teacher is worth (+), with --linked-teachers alone."""
    review_games: Annotated[int, Ge(2)] = 30
    """Games of a review (+), with all links and again without each linked teacher's; they are no steps of the run."""
    review_steps: Count = 500
    """Steps of each of these games, at most (+)."""
    newcomer_share: Annotated[float, Gt(0.0), Lt(1.0)] = 0.05
    """p of a newcomer's links together, at each layer, when it comes (+)."""
    fold_at: Fraction | None = 0.0
    """Share of the run that the student learns with its links, before it is folded into a plain net, which goes on
    alone (+). None: the student stays linked, as in the paper."""
    fold_observations: Annotated[int, Ge(0)] = 8_192
    """Observations of the linked student's play for the fold's regressions, every fourth step of it (+). 0: no fold;
    the plain net starts afresh."""
    keep_biases: Literal["expert", "always"] = "expert"
    """Whether the fold keeps the teachers' biases in the hidden layers: always; or (expert) not where no teacher plays
    the game and the student learns from rewards right after the fold (+). Then they are 0, and fc is as large as in a
    fresh net."""
    imitate: Literal["never", "expert", "always"] = "expert"
    """Whether the plain net then imitates the linked one before it learns alone (+): only if a teacher plays the same
    game (expert), always, or never."""
    imitation_steps: Count = 100_000
    """Steps of this imitation (+), at most two thirds of what is left of the run."""
    imitation_lr: Positive = 3e-3
    """Its learning rate, of an Adam of its own, falling linearly to 0 (+). Less where the fold has the policy with an
    R2 above 0.8."""
    imitation_batch: Count = 256
    """Samples of each of its updates (+), as nearly as whole steps of all of a worker's games allow."""
    imitation_samples: Count = 8
    """Samples that it learns from for each step of play (+)."""
    imitation_memory: Count = 65_536
    """Samples that all workers together remember for it (+); 28 KB each."""
    imitation_value_coef: NonNegative = 0.05
    """Weight of the squared error of the values beside the KL of the policies (+); no effect if no value head is linked
    and there is no linked phase, because nothing has trained the linked net's values then."""
    kl_direction: Direction = "forward"
    """Of the imitation and the kickstart (+): KL[linked || lone], reverse KL[lone || linked], or mixed, their mean."""
    kickstart_coef: NonNegative = 1.0
    """Weight of the KL to the linked net that stays beside the rewards when the plain net then learns alone (+); it
    falls to 0 by the middle of that phase (Schmitt et al. 2018), and sooner if its games reach the teacher's score."""


class FlowNet(nn.Module):
    """A linked student, and the plain net of the same shape that takes over what it knows.

    After the fold `flow` stays as it is, for `alone` to imitate.
    """

    def __init__(self, flow: KnowledgeFlow, layers: Sequence[str], pool: TeacherPool | None = None) -> None:
        """Keep both.

        Args:
            flow: The linked student.
            layers: What a fold changes.
            pool: Its teachers, where they come and go.
        """
        super().__init__()
        self.flow = flow
        self.pool = pool
        self.alone = flow.export()
        self.fold_r2 = nn.Module()
        for layer in layers:
            self.fold_r2.register_buffer(tensor_name(layer), torch.tensor(torch.nan))

    @property
    def state_size(self) -> int:
        """That of the student."""
        return state_size(self.alone)

    @property
    def folded(self) -> bool:
        """Whether `alone` has been folded and learns by itself."""
        return not any(r2.isnan() for r2 in self.fold_r2.buffers())

    @property
    def fold_layers(self) -> list[str]:
        """The layers that a fold changes, in the order of the forward pass."""
        return [name for name, _ in self.fold_r2.named_buffers()]

    def leave_fresh(self) -> None:
        """Let `alone` go its way from its fresh weights: it takes over nothing."""
        for r2 in self.fold_r2.buffers():
            r2.zero_()

    def leave_out_useless(self, obs: Tensor, needed: Collection[str]) -> dict[str, str]:
        """See `KnowledgeFlow.leave_out_useless`; they are never taken from the pool."""
        reasons = self.flow.leave_out_useless(obs, needed)
        if self.pool is not None and reasons:
            self.pool.bar(reasons)
            self.take_up_links()
        return reasons

    def take_up_links(self) -> None:
        """Link the teachers that the pool has chosen."""
        if self.pool is not None:
            self.flow.absent = self.pool.absent

    def fold(self, observations: Tensor, features: Sequence[Tensor] = (), *, keep_biases: bool = True) -> Iterator[str]:
        """Fold `flow` into `alone`; a line for each layer.

        Args:
            observations: (N, stack, H, W) uint8.
            features: The teachers' stored pre-activations on them, (N, ...) each, in the order of `flow.present_taps`;
                without them the teachers are run.
            keep_biases: False: see `kfrl.flow.fold.drop_biases`. The heads are then fitted to the layers without them.

        Raises:
            UserError: too few observations.
        """
        self.alone.load_state_dict(self.flow.export().state_dict())
        layers = self.fold_layers
        size = max(1, min(FOLD_BATCH, len(observations) // 10))
        batches = observations.split(size)
        stored = dict(zip(map(id, batches), zip(*(part.split(size) for part in features), strict=True), strict=False))

        def mixture(layer: str, obs: Tensor) -> Tensor:
            return self.flow.mixture(layer, obs, stored.get(id(obs)))

        hidden = [layer for layer in layers if layer not in AtariNet.head_layers]
        heads = layers[len(hidden) :]
        yield from self._fold_layers(hidden, mixture, batches)
        if hidden and not keep_biases:
            scale = drop_biases(self.alone, hidden, self.flow.student, screens(_spread(observations)))
            yield (
                f"No teacher plays this game: the biases of {', '.join(hidden)} are set to 0, and the weights of "
                f"{hidden[-1]} are multiplied by {scale:.2f}."
            )
        yield from self._fold_layers(heads, mixture, batches)

    def _fold_layers(
        self, layers: Sequence[str], mixture: Callable[[str, Tensor], Tensor], batches: Sequence[Tensor]
    ) -> Iterator[str]:
        for folded in fold(self.alone, layers, mixture, batches, self.flow.own_rows):
            self.fold_r2.get_buffer(tensor_name(folded.layer)).fill_(folded.r2)
            yield f"Folded {folded}"
            if folded.layer in AtariNet.head_layers and folded.r2 < LEAST_HEAD_R2:
                own = self.flow.student.get_submodule(folded.layer).state_dict()
                self.alone.get_submodule(folded.layer).load_state_dict(own)
                yield f"That is too little to start from: {folded.layer} keeps the student's own weights."


class KnowledgeFlowMethod(Method[FlowNet]):
    """total = A3C loss + lambda_1(t) l_dep + lambda_2 l_KL (eq. 4) while linked; then the student learns alone."""

    takes_teachers = "some"
    takes_answers = "beside"
    takes_recurrent_teachers = True
    leans_on_teachers = True
    Settings = Settings

    def __init__(self, config: TrainConfig) -> None:
        """Keep the settings.

        Raises:
            UserError: they need a student without a state.
        """
        super().__init__(config)
        self.flow_config: Settings = self.own
        if config.net == "lstm":
            _check_recurrent_student(self.own)
        self._stages: tuple[str, ...] = (LINKED,)
        self._linked_steps = 0
        self._expert: Teacher | None = None
        self._without_value: tuple[str, ...] = ()
        self._value_coef = self.flow_config.imitation_value_coef
        self._recurrent: tuple[str, ...] = ()
        self._unlinked: tuple[str, ...] = ()
        self._other_actions: tuple[str, ...] = ()
        self._game = ""
        self._actions: tuple[str, ...] = ()
        self._memory = Memory(self.flow_config.imitation_memory // config.shape.workers)
        self._guide_share, self._kickstart = 1.0, 0.0
        self._shortfall = Shortfall(None, "", 0)
        self._answers: Answers | None = None
        self._teachers: dict[str, Teacher] = {}
        self._theta_old: dict[str, Tensor] | None = None
        self._updates = 0
        self._guided: Tensor | None = None

    @property
    def stage(self) -> str:
        """What the process's phase is about."""
        return self._stages[self.phase]

    @property
    def memory_bytes(self) -> float:
        """The memory of the imitation."""
        return float(SAMPLE_BYTES * self.flow_config.imitation_memory) if IMITATION in self._stages else 0.0

    def phases(self, spec: NetSpec, teachers: Sequence[Teacher]) -> tuple[Phase, ...]:
        """Linked, imitation, alone; the steps of all play together are the run's.

        Raises:
            UserError: the run is too short for the play that the choice of channels or a fold needs.
        """
        flow, steps, games = self.flow_config, self.config.steps, (spec,)
        if flow.fold_at is None:
            return (Phase(games, self._left_by_the_choice(), LINKED),)
        left = steps if self.config.answers else steps - self._choice_steps - steps_for(flow.fold_observations)
        linked = round(flow.fold_at * left)
        if 0 < left <= linked:
            raise UserError(
                f"--fold-at {flow.fold_at:g} leaves no step after the fold. Give at most 0.9, or None for a run that "
                "stays linked."
            )
        if left <= 0:
            play = steps_for(flow.fold_observations)
            raise UserError(
                f"--steps {steps:,}: the fold of the linked student needs the play of {play:,} "
                f"steps (four for each of --fold-observations). Give --steps {-left + steps + 1:,} or more, fewer "
                "observations, or --fold-at None for a run that stays linked."
            )
        imitation = min(flow.imitation_steps, 2 * (left - linked) // 3) if self._imitates(spec, teachers) else 0
        t_max = max(1, round(flow.imitation_batch / (flow.imitation_samples * self.config.shape.envs_per_worker)))
        phases = (
            Phase(games, linked, LINKED, lr=(1.0, 1.0 - flow.fold_at)),
            Phase(games, imitation, IMITATION, t_max=t_max, imitates=True, guided=True, warm_up=WARM_UP),
            Phase(games, left - linked - imitation, ALONE, warm_up=WARM_UP),
        )
        return tuple(phase for phase in phases if phase.steps)

    @property
    def _choice_steps(self) -> int:
        """Steps that `prepare` plays to choose channels or to match scales."""
        return steps_for(CHOICE_OBSERVATIONS) if self._chooses and not self.config.answers else 0

    def _left_by_the_choice(self) -> int:
        steps, played = self.config.steps, self._choice_steps
        if steps <= played:
            raise UserError(
                f"--steps {steps:,}: the choice of the teachers' channels and the match of their scales need the play "
                f"of {played:,} steps. Give --steps {played + 1:,} or more, or --no-choose-channels and "
                "--no-match-scales."
            )
        return steps - played

    def fitted_phases(self, net: FlowNet, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """Without the imitation where the fold has left nothing to it: its steps go to the learning alone."""
        if not self._nothing_to_imitate(net):
            return phases
        spare = sum(phase.steps for phase in phases if phase.title == IMITATION)
        more = {IMITATION: -spare, ALONE: spare}
        return tuple(replace(phase, steps=phase.steps + more.get(phase.title, 0)) for phase in phases)

    def _nothing_to_imitate(self, net: FlowNet) -> bool:
        return IMITATION in self._stages and self._policy_r2(net) >= NEARLY_EXACT

    def _policy_r2(self, net: FlowNet) -> float:
        """R2 of the fold of the policy head; 0 before the fold, or where no head is linked."""
        r2 = dict(net.fold_r2.named_buffers()).get("policy")
        return 0.0 if r2 is None or r2.isnan() else float(r2)

    def _imitates(self, spec: NetSpec, teachers: Sequence[Teacher]) -> bool:
        """Whether the linked net is imitated. That of non-experts plays too badly for it."""
        imitate = self.flow_config.imitate
        return imitate == "always" or (imitate == "expert" and _expert(spec, teachers) is not None)

    def build(self, spec: NetSpec, teachers: Sequence[Teacher]) -> FlowNet:
        """The paper's student, linked to every teacher, and the plain net that it is folded into."""
        config = self.flow_config
        phases = self.phases(spec, teachers)
        self._stages = tuple(phase.title for phase in phases)
        self._linked_steps = phases[0].steps if phases[0].title == LINKED else 0
        self._expert, self._game, self._actions = _expert(spec, teachers), spec.game, spec.actions
        self._shortfall = Shortfall(self._expert, spec.game, get_protocol(self.config.protocol, spec.game).max_frames)
        self._teachers = {teacher.name: teacher for teacher in teachers}
        student = self.student(spec)
        size, stack = student.arch["screen_size"], student.arch["frame_stack"]
        example = torch.zeros(1, stack, size, size, dtype=torch.uint8)
        self._unlinked = self._left_to_the_expert(teachers)
        nets = {teacher.name: teacher.net for teacher in teachers if teacher.name not in self._unlinked}
        self._recurrent = tuple(name for name, net in nets.items() if state_size(net))
        links = config.links or links_by_depth(student, nets, example) + self._head_links(spec, teachers)
        _check_stateless(links, nets)
        flow = KnowledgeFlow(
            student,
            nets,
            links,
            example,
            transform=config.transform,
            rank=config.transform_rank,
            mixing=config.mixing,
            student_weight=config.student_weight,
        )
        if LINKED not in self._stages and not any(link.student == "value" for link in links):
            # Neither a teacher nor a reward has trained the linked net's value head.
            self._value_coef = 0.0
        _match_actions(flow, spec.actions, self._teachers)
        if config.mixing == "simplex":
            flow.transforms.requires_grad_(False)
        layers = foldable_layers(student, flow.layers, example)
        self._open_answers(spec, flow)
        if config.fold_at is not None:
            self._check_observations(student, layers)
            if not self.config.answers:
                check_memory("fold-observations", config.fold_observations)
        if IMITATION in self._stages:
            check_memory("imitation-memory", config.imitation_memory)
        pool = None if config.linked_teachers is None else self._pool(list(nets), config.linked_teachers)
        net = FlowNet(flow, layers, pool)
        net.take_up_links()
        if pool is not None:
            self._set_student_weight(flow)
        net.alone.requires_grad_(False)
        return net

    def _left_to_the_expert(self, teachers: Sequence[Teacher]) -> tuple[str, ...]:
        """Teachers of other games beside an expert, where nothing trains what their links would bring.

        A fold at the start takes the expert's channels first, and nothing that was measured says that the others help.
        """
        config = self.flow_config
        if self._expert is None or LINKED in self._stages or config.links or config.link_heads == "always":
            return ()
        return tuple(teacher.name for teacher in teachers if not _plays(teacher, self._game))

    def check_used(self) -> None:
        """See `Method.check_used`: settings of phases that the run lacks, and others without what they act on."""
        config = self.flow_config
        if LINKED not in self._stages:
            self.refuse_unused(
                LINKED_ONLY,
                "it has no linked phase. Give --fold-at 0.1, or None for a run that stays linked; or leave it out.",
            )
        if IMITATION not in self._stages:
            self.refuse_unused(
                IMITATION_ONLY,
                "it has no imitation. Give a teacher of the run's own game or --imitate always, and a --fold-at other "
                "than None; or leave it out.",
            )
        if config.fold_at is None:
            always = ("imitate",) if config.imitate == "always" else ()
            self.refuse_unused(
                ("fold_observations", *always), "its student stays linked. Give --fold-at 0.1, or leave it out."
            )
        if not (config.fold_observations or LINKED in self._stages or IMITATION in self._stages):
            raise UserError(
                "--fold-observations 0 leaves the teachers without effect: there is no fold, no linked phase and no "
                "imitation. Give --fold-at 0.1, --imitate always, or leave it out; scratch is --method a3c."
            )
        if config.fold_at is None or not config.fold_observations:
            self.refuse_unused(("keep_biases",), "it has no fold. Give --fold-at 0, or leave it out.")
        if config.linked_teachers is None:
            self.refuse_unused(
                POOL_ONLY, "all of its teachers are linked from the start. Give --linked-teachers 2, or leave it out."
            )
        if not config.policy_kl_coef:
            self.refuse_unused(("policy_kl_every",), "--policy-kl-coef is 0. Give one above 0, or leave it out.")
        if config.transform != "low-rank":
            self.refuse_unused(("transform_rank",), "it is of --transform low-rank. Give that, or leave it out.")

    def _open_answers(self, spec: NetSpec, flow: KnowledgeFlow) -> None:
        """Open the stored answers, if there are any, and check that they are of this game and of all links."""
        if not self.config.answers:
            return
        if self.flow_config.fold_at is None:
            raise UserError("--answers are for the fold, and with --fold-at None there is none. Leave one of them out.")
        rules = get_protocol(self.config.protocol, spec.game)
        self._answers = answers_for(open_all(self.config.answer_files), rules)
        self._answers.said(flow.taps, self._teachers)

    def _pool(self, names: Sequence[str], places: int) -> TeacherPool:
        """The pool of the run's teachers.

        Raises:
            UserError: it is smaller than the places, or there is no review.
        """
        if len(names) < places:
            raise UserError(
                f"--linked-teachers {places} needs a pool of {places} teachers or more, and --teachers names "
                f"{len(names)}: {', '.join(names)}. Name more (--teachers all is the whole zoo), or link fewer."
            )
        if self.config.answers:
            raise UserError(
                "--answers hold the features of teachers that are all linked at once. Leave out --answers or "
                "--linked-teachers."
            )
        if self._linked_steps <= self.flow_config.review_every:
            raise UserError(
                f"--linked-teachers {places} needs a linked phase with at least one review; this run's has "
                f"{self._linked_steps:,} steps and a review comes every {self.flow_config.review_every:,}. Give "
                "--fold-at 0.5, or None for a run that stays linked, or a smaller --review-every."
            )
        return TeacherPool(names, places)

    def _check_observations(self, student: nn.Module, layers: Sequence[str]) -> None:
        have = self.flow_config.fold_observations
        if not have:
            return
        if self._answers is not None and self._answers.card.count < have:
            raise UserError(
                f"{self._answers.path} has {self._answers.card.count:,} observations, and the fold takes {have:,}. "
                "Collect more, or give fewer --fold-observations."
            )
        for layer, needed in observations_needed(student, layers).items():
            if have < needed:
                raise UserError(
                    f"--fold-observations {have:,} are too few: layer {layer} has more unknowns. Give {needed:,} "
                    f"or more ({steps_for(needed):,} steps of play), or --fold-at None for a run that stays linked."
                )

    def prepare(self, net: FlowNet, play: Play) -> Iterator[str]:
        """Leave out useless teachers, choose the others' channels, and scale these to the fresh student's own.

        Logits and values keep their scale, which says how sure the teacher is. Without a linked phase, fold here.
        """
        config, flow = self.flow_config, net.flow
        if self._answers is not None:
            play = self._answers.spread
        if self._chooses:
            obs = screens(play(CHOICE_OBSERVATIONS, self._expert_policy()))
            yield from self._leave_out_useless(net, obs)
            hidden = [link for link in _hidden(flow) if link.teacher not in flow.absent]
            if config.choose_channels:
                yield from flow.choose_channels(obs, hidden, self._needed)
            if config.match_scales:
                flow.match_scales(obs, hidden)
        if self._stages[0] != LINKED:
            yield from self._fold(net, play)

    @property
    def _chooses(self) -> bool:
        """Whether `prepare` looks at the game before there is a link."""
        return self.flow_config.choose_channels or self.flow_config.match_scales

    @property
    def _needed(self) -> list[str]:
        return [self._expert.name] if self._expert else []

    def _leave_out_useless(self, net: FlowNet, obs: Tensor) -> Iterator[str]:
        if reasons := net.leave_out_useless(obs, self._needed):
            yield from reasons.values()
            self._set_student_weight(net.flow)

    def _set_student_weight(self, flow: KnowledgeFlow) -> None:
        """Give p of the student its start again, because the teachers that are linked have changed."""
        if self.flow_config.student_weight is not None:
            flow.set_student_weight(self.flow_config.student_weight)

    def _expert_policy(self) -> Callable[[Tensor], Tensor] | None:
        if self._expert is None:
            return None
        return matched_policy(self._expert.net, self._expert.card.actions, self._actions)

    def notes(self, net: FlowNet) -> Sequence[str]:
        """Which value heads are not linked; the size of the imitation's memory, or why there is no imitation."""
        alone = IMITATION in self._stages and not self._value_coef and self.flow_config.imitation_value_coef
        effect = ", and the imitation fits the policy alone: --imitation-value-coef has no effect" if alone else ""
        unlinked = [
            f"Teacher {name}'s value head was never trained, so it is not linked{effect}."
            for name in self._without_value
        ]
        recurrent = [
            f"Teacher {name} has an LSTM: its convolutions and its fully connected layer are linked. Its heads are not,"
            " because they read its state, and it is not imitated."
            for name in self._recurrent
        ]
        strangers = [
            f"Teacher {name} is not linked: it plays another game than {self._game}, which an expert teaches here, and "
            "without a linked phase nothing would fit its features to this game. --fold-at 0.1 links it."
            for name in self._unlinked
        ]
        others = [
            f"Teacher {name}'s policy is not linked: its actions are not those of {self._game}."
            for name in self._other_actions
        ]
        return (*unlinked, *recurrent, *strangers, *others, *self._imitation_notes(), *self._kickstart_notes())

    def _imitation_notes(self) -> Sequence[str]:
        config, workers = self.flow_config, self.config.shape.workers
        if IMITATION in self._stages:
            return (
                f"The lone student imitates the linked one from {config.imitation_samples} samples a step, of "
                f"{config.imitation_memory:,} in memory ({config.imitation_memory * SAMPLE_BYTES / 2**30:.1f} GiB).",
                *smaller_than_measured("imitation-memory", config.imitation_memory, workers, MEASURED_MEMORY),
            )
        if config.imitate == "expert" and config.fold_at is not None and self._expert is None and not self._recurrent:
            return ("No teacher plays this game, so there is no imitation; --imitate always turns it on.",)
        return ()

    def _kickstart_notes(self) -> Sequence[str]:
        """Why the kickstart does not depend on the games that the student plays, or has no effect, if so."""
        if not (self.flow_config.kickstart_coef and {IMITATION, ALONE} <= set(self._stages)):
            return ()
        note = self._shortfall.note()
        return (note,) if note else ()

    def _head_links(self, spec: NetSpec, teachers: Sequence[Teacher]) -> list[Link]:
        wanted = self.flow_config.link_heads
        policies_alone = wanted == "policies" and self._starts_from_strangers
        stateless = [teacher for teacher in teachers if not state_size(teacher.net)]
        # Of a policy over other actions the student would have a part, which is not what the teacher plays.
        others = [teacher.name for teacher in stateless if set(teacher.card.actions) != set(spec.actions)]
        self._other_actions = tuple(others) if policies_alone else ()
        linked = [
            teacher
            for teacher in stateless
            if wanted == "always"
            or (policies_alone and teacher.name not in others)
            or (wanted != "never" and _plays(teacher, spec.game))
        ]
        # Values of another game are of another size, so the first updates would be mostly of their errors.
        heads = ("policy",) if policies_alone else AtariNet.head_layers
        untrained = tuple(teacher.name for teacher in linked if not teacher.card.trains_value)
        self._without_value = untrained if "value" in heads else ()
        return [
            Link(head, teacher.name, head)
            for head in heads
            for teacher in linked
            if head == "policy" or teacher.name not in untrained
        ]

    def review(self, net: FlowNet, step: int, games: Callable[[int], AtariEnvs]) -> Iterator[Review | None] | None:
        """Every `review_every` steps of the linked phase, where teachers come and go."""
        pool, config = net.pool, self.flow_config
        if pool is None or self.stage != LINKED or step < (int(pool.reviews) + 1) * config.review_every:
            return None
        terms = Terms(
            games=config.review_games,
            steps=config.review_steps,
            share=config.newcomer_share,
            newcomers=step < LAST_NEWCOMER * self._linked_steps,
            seed=stream(self.config.seed, REVIEW - int(pool.reviews)),
        )
        return review(net.flow, pool, games, terms, lambda *newcomer: self._admit(net.flow, *newcomer))

    @torch.no_grad()
    def _admit(self, flow: KnowledgeFlow, teacher: str, share: float, obs: Tensor) -> tuple[nn.Parameter, ...]:
        """Link a teacher with fresh Qs; those of its hidden features at the scale of what they join."""
        device = next(flow.parameters()).device
        obs = screens(obs.to(device))
        own = [index for index, link in enumerate(flow.links) if link.teacher == teacher]
        for index in own:
            shapes, config = flow.link_table()[index], self.flow_config
            fresh = build_transform(config.transform, shapes.teacher_shape, shapes.student_shape, config.transform_rank)
            for name, parameter in fresh.named_parameters():
                flow.transforms[index].get_parameter(name).copy_(parameter)
        links = [link for link in _hidden(flow) if link.teacher == teacher]
        _match_actions(flow, self._actions, {teacher: self._teachers[teacher]})
        if self.flow_config.choose_channels:
            absent, flow.absent = flow.absent, flow.absent - {teacher}
            flow.choose_channels(obs, links)
            flow.absent = absent
        flow.admit(teacher, share, obs, links)
        return tuple(parameter for index in own for parameter in flow.transforms[index].parameters())

    def begin(self, net: FlowNet, phase: int, task: NetSpec, rank: int) -> None:
        """Say which of the two nets trains."""
        super().begin(net, phase, task, rank)
        net.take_up_links()
        self._theta_old, self._updates = None, 0
        self._shortfall.begin(plays_as_taught=self._nothing_to_imitate(net))
        linked = self.stage == LINKED
        net.flow.student.requires_grad_(linked)
        net.flow.transforms.requires_grad_(linked and self.flow_config.mixing == "softmax")
        net.flow.mixing.requires_grad_(linked)
        net.alone.requires_grad_(not linked)

    def recall(self, scores: Sequence[float]) -> None:
        """They say how far the lone student is behind."""
        self._shortfall.count(scores)

    def end_phase(self, net: FlowNet, play: Play) -> Iterable[str]:
        """The fold, after the linked phase."""
        if self.stage == LINKED:
            yield from self._fold(net, play)

    def _fold(self, net: FlowNet, play: Play) -> Iterator[str]:
        observations = self.flow_config.fold_observations
        if not observations:
            net.leave_fresh()
            yield "There is no fold: the lone student starts afresh."
            return
        if self._answers is None:
            seen, features = play(observations, lambda obs: net.flow(obs)[0]), []
            if self._stages[0] != LINKED and not self._chooses:
                yield from self._leave_out_useless(net, screens(_spread(seen)))
        else:
            stored = (self._answers.observations, *self._answers.said(net.flow.present_taps, self._teachers))
            seen, *features = (part[:observations] for part in stored)
        keep_biases = self.flow_config.keep_biases == "always" or not self._starts_from_strangers
        yield from net.fold(seen, features, keep_biases=keep_biases)
        if self._nothing_to_imitate(net):
            yield "The fold has the whole policy, so nothing is left to imitate: these steps go to the learning alone."

    @property
    def _starts_from_strangers(self) -> bool:
        """Whether no teacher plays the game, and the student learns from rewards right after the fold."""
        strangers = not any(_plays(teacher, self._game) for teacher in self._teachers.values())
        return strangers and self._stages[0] == ALONE

    def parameter_groups(self, net: FlowNet) -> list[ParameterGroup]:
        """While linked student and Q at the run's rate, w by plain gradient descent or with them; then the plain net.

        An optimiser that divides by the gradient's size makes w a clock: the gradient of l_dep never changes sign, and
        that of the task becomes noise of the same size. Plain steps add up what the gradients say.
        """
        if self.stage != LINKED:
            scale = self._imitation_lr(net) / self.config.shape.lr if self.stage == IMITATION else 1.0
            return [ParameterGroup(tuple(net.alone.parameters()), scale)]
        parameters = (*net.flow.student.parameters(), *net.flow.transforms.parameters())
        body = tuple(p for p in parameters if p.requires_grad)
        mixing, rate = tuple(net.flow.mixing.parameters()), self.flow_config.layer_weights_lr
        if rate is None:
            return [ParameterGroup((*body, *mixing))]
        return [ParameterGroup(body), ParameterGroup(mixing, sgd=rate / self._linked_updates())]

    def _imitation_lr(self, net: FlowNet) -> float:
        """Less where the fold left little to learn: Adam's steps are as large as its rate, however small the error."""
        return self.flow_config.imitation_lr * min(1.0, (1.0 - self._policy_r2(net)) / FULL_RATE_AT)

    def _linked_updates(self) -> float:
        """The updates of the linked phase, so that w moves by `layer_weights_lr` times its mean gradient in any run."""
        share = 1.0 if self.flow_config.fold_at is None else self.flow_config.fold_at
        return max(share * self.config.steps / self.config.steps_an_update, 1.0)

    def schedule(self, net: FlowNet, progress: float) -> None:
        """The linked net acts less and less in the imitation's first half; then it is followed less and less.

        It is followed in the first half of the learning alone, as far as the student is behind.
        """
        net.take_up_links()
        self._guide_share = max(0.0, 1.0 - 2.0 * progress)
        kickstarts = self.stage == ALONE and IMITATION in self._stages
        weight = self._guide_share * self._shortfall.share() if kickstarts else 0.0
        self._kickstart = self.flow_config.kickstart_coef * weight
        # The linked net is asked only while it is followed, which can end and begin again with the student's games.
        self.features_of = net.flow.absent, self._kickstart > 0.0

    def features(self, net: FlowNet, obs: Tensor) -> Context:
        """While linked, the teachers' pre-activations; while the linked net is followed, its logits and values."""
        if self.stage == LINKED:
            return net.flow.teacher_features(screens(obs))
        if self.stage == IMITATION or self._kickstart:
            with torch.no_grad():
                logits, values = net.flow(screens(obs))
            return logits, values
        return ()

    def forward(self, net: FlowNet, obs: Tensor, context: Context) -> Output:
        """The linked student's logits and values, later the plain net's, which learns from memory in the imitation."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stage != IMITATION):
            return Output(*(net.flow(obs, context) if self.stage == LINKED else net.alone(obs)))

    def forward_with_state(
        self, net: FlowNet, obs: Tensor, context: Context, state: Tensor, ended: Tensor | None = None
    ) -> tuple[Output, Tensor]:
        """The linked student's; a student with a state stays linked."""
        logits, values, after = net.flow(obs, context, (state, ended))
        return Output(logits, values), after

    def acting_logits(self, logits: Tensor, context: Context) -> Tensor:
        """In the imitation, the linked net's logits in some of the games: samples come from both policies."""
        if self.stage != IMITATION:
            return logits
        fresh = torch.rand(len(logits)) < self._guide_share
        if self._guided is None:
            self._guided = fresh
        self._guided = torch.where(torch.rand(len(logits)) < 1.0 / STRETCH, fresh, self._guided)
        return torch.where(self._guided.to(logits.device)[:, None], context[0], logits)

    def rl_terms(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """All, or none in the imitation."""
        return {} if self.stage == IMITATION else terms

    def losses(self, net: FlowNet, batch: Batch, progress: float) -> dict[str, Tensor]:
        """lambda_1(t) l_dep (eq. 5) while linked, lambda_2 l_KL (eq. 6) while rewards count; or the imitation.

        An imitation leaves a term behind, KL[pi_linked || pi_alone] with a weight that falls to 0: the first updates
        from rewards would else undo it.
        """
        if self.stage == IMITATION:
            return {"imitation": self._imitation(net.alone, batch)}
        self._shortfall.count(episode.score for episode in batch.episodes)
        config = self.flow_config
        terms: dict[str, Tensor] = {}
        if config.policy_kl_coef:
            terms["policy_kl"] = config.policy_kl_coef * self._policy_kl(net, batch)
        if self._kickstart:
            guide = directed_kl(batch.logits, batch.context[0], self.flow_config.kl_direction).sum() / batch.num_envs
            terms["kickstart"] = self._kickstart * guide
        if self.stage == LINKED and config.dependence_coef:
            p_student = [net.flow.layer_weights(layer)[0] for layer in net.flow.layers]
            # Like the other terms a sum over the rollout's steps, in each of which eq. 4 has it once.
            steps = len(batch.values) / batch.num_envs
            terms["dependence"] = steps * config.lambda_1(progress) * dependence_loss(p_student)
        return terms

    def measure(self, batch: Batch, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """The size of l_KL's gradient with respect to the logits, as a share of the policy loss's."""
        if "policy_kl" not in terms:
            return {}
        sizes = [_gradient_size(terms[name], batch.logits) for name in ("policy_kl", "policy")]
        return {"flow/policy_kl_share": sizes[0] / sizes[1]} if sizes[1] else {}

    def _acting(self, net: FlowNet) -> nn.Module:
        return net.flow if self.stage == LINKED else net.alone

    def _policy_kl(self, net: FlowNet, batch: Batch) -> Tensor:
        """Eq. 6, summed over the batch's steps, estimated on the samples for which theta_old's logits are known."""
        if self._theta_old is not None:
            inputs = (screens(batch.obs), batch.context) if self.stage == LINKED else (batch.obs,)
            with torch.no_grad():
                old_logits, _ = functional_call(self._acting(net), self._theta_old, inputs)
        elif batch.previous_logits is None:
            return batch.logits.new_zeros(())
        else:
            old_logits = batch.previous_logits
        steps = len(batch.values) / batch.num_envs
        return steps * policy_kl_loss(batch.logits[: len(old_logits)], old_logits).mean()

    def _imitation(self, alone: nn.Module, batch: Batch) -> Tensor:
        """KL[pi_linked || pi_alone] + c (V_linked - V_alone)^2, the mean over samples from memory.

        c is 0 if V_linked is that of a fresh net.
        """
        self._memory.add(batch.obs, *batch.context)
        # Only about `imitation_batch`, because a rollout has whole steps of all games.
        size = self.flow_config.imitation_samples * len(batch.obs)
        obs, guide_logits, guide_values = self._memory.draw(size, parts=size)
        logits, values = alone(obs)
        error = (guide_values - values).square()
        loss = directed_kl(logits, guide_logits, self.flow_config.kl_direction)
        total: Tensor = loss + self._value_coef * error
        return total.mean()

    def after_update(self, net: FlowNet, progress: float) -> None:
        """Reproduction variant: p back on the simplex. And theta_old anew, where it is older than one update."""
        if self.stage == LINKED:
            net.flow.mixing.renormalise()
        config = self.flow_config
        if config.policy_kl_coef and config.policy_kl_every > 1 and self.stage != IMITATION:
            if self._updates % config.policy_kl_every == 0:
                self._theta_old = {name: p.detach().clone() for name, p in self._acting(net).named_parameters()}
            self._updates += 1

    def export(self, net: FlowNet) -> nn.Module:
        """The student alone: after the fold the plain net."""
        return copy.deepcopy(net.alone) if net.folded else net.flow.export()

    def caveat(self, net: FlowNet) -> str:
        """That the student is linked, until it is folded."""
        if net.folded:
            return ""
        later = "--fold-at 0 does so in the run" if self.flow_config.fold_at is None else "so does the run, resumed"
        return (
            "Warning: this student is not independent. It was trained with its teachers' links, and its file holds the "
            f"student alone. `kfrl fold RUN` makes a plain net of both; {later}."
        )

    def independent(self, net: FlowNet) -> bool:
        """Whether the fold is done."""
        return net.folded

    def metrics(self, net: FlowNet) -> dict[str, float]:
        """While linked the weights p of the student and of each teacher, per layer; then the fold's R2."""
        if self.stage == LINKED:
            return net.flow.weights()
        return {f"fold/r2/{name}": float(r2) for name, r2 in net.fold_r2.named_buffers()}


def _plays(teacher: Teacher, game: str) -> bool:
    """Whether a teacher plays the game in any flavour: its actions mean the same."""
    return Game(teacher.card.game).rom == Game(game).rom


def _expert(spec: NetSpec, teachers: Sequence[Teacher]) -> Teacher | None:
    """The first feed-forward teacher that plays the run's own game, or else another flavour of it."""
    found = [teacher for teacher in teachers if _plays(teacher, spec.game) and not state_size(teacher.net)]
    return min(found, key=lambda teacher: teacher.card.game != spec.game, default=None)


def _check_recurrent_student(settings: Settings) -> None:
    """Refuse what evaluates a student on single observations."""
    wrong = {
        "--fold-at None": settings.fold_at is not None,
        "--policy-kl-every 1": settings.policy_kl_every > 1,
        "no --linked-teachers": settings.linked_teachers is not None,
    }
    if any(wrong.values()):
        raise UserError(
            "A student with an LSTM stays linked to all of its teachers: a fold, an imitation, a review and an older "
            "policy need its answers to single observations. Give "
            f"{' and '.join(name for name, asked in wrong.items() if asked)}, or --net feed-forward."
        )


def _check_stateless(links: Iterable[Link], teachers: Mapping[str, nn.Module]) -> None:
    """Refuse links from layers of a recurrent teacher that depend on its state."""
    for link in links:
        teacher = teachers.get(link.teacher)
        if teacher is not None and state_size(teacher) and link.layer not in hidden_layers(teacher):
            raise UserError(
                f"Link {link}: layer {link.layer} of teacher {link.teacher} depends on the state of its LSTM. Link one "
                f"of these: {', '.join(hidden_layers(teacher))}."
            )


def _gradient_size(term: Tensor, logits: Tensor) -> float:
    if not term.requires_grad:
        return 0.0
    (gradient,) = torch.autograd.grad(term, logits, retain_graph=True)
    return float(gradient.norm())


def check_memory(setting: str, samples: int) -> None:
    """Refuse a number of observations that do not fit into the machine's memory.

    Raises:
        UserError: the message gives their size, and a number that fits.
    """
    have = total_memory() or math.inf
    if samples * SAMPLE_BYTES > 0.8 * have:
        raise UserError(
            f"--{setting} {samples:,} needs {samples * SAMPLE_BYTES / 2**30:,.1f} GiB, and this machine has "
            f"{have / 2**30:.1f} GiB. Give {int(0.5 * have / SAMPLE_BYTES):,} or fewer."
        )


def _spread(observations: Tensor) -> Tensor:
    """At most `CHOICE_OBSERVATIONS` of them, at equal distances."""
    return observations[:: math.ceil(len(observations) / CHOICE_OBSERVATIONS)]


def _hidden(flow: KnowledgeFlow) -> list[Link]:
    """The links that do not join two heads."""
    heads = AtariNet.head_layers
    return [link for link in flow.links if not (link.student in heads and link.layer in heads)]


@torch.no_grad()
def _match_actions(flow: KnowledgeFlow, actions: Sequence[str], theirs: Mapping[str, Teacher]) -> None:
    """Start the Qs of policy heads as matrices that join actions of the same meaning; of the teachers in `theirs`."""
    for link, transform in zip(flow.links, flow.transforms, strict=True):
        if link.student == link.layer == "policy" and link.teacher in theirs and hasattr(transform, "weight"):
            matrix = [[float(own == other) for other in theirs[link.teacher].card.actions] for own in actions]
            transform.get_parameter("weight").data.copy_(torch.tensor(matrix))


METHOD = KnowledgeFlowMethod
