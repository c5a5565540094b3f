"""KnowledgeFlow: a student whose layers are mixed with transformed features of its teachers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import compress
from typing import Any, cast

import torch
from torch import Tensor, nn

from kfrl.errors import UserError
from kfrl.flow.channels import channel_uses, choose
from kfrl.flow.mixing import Mixing, Variant, tensor_name
from kfrl.nets.adapters import build_transform
from kfrl.nets.hooks import features_of, layer_shapes, overwrites, undisturbed, with_features
from kfrl.nets.links import Link, check_links


@dataclass(frozen=True)
class LinkShape:
    """A row of the table of links; shapes are without the batch dimension."""

    link: Link
    teacher_shape: tuple[int, ...]
    student_shape: tuple[int, ...]
    transform: str
    parameters: int


class KnowledgeFlow(nn.Module):
    """h(l_0^j) = sigma(p^j(l_0^j) z(l_0^j) + sum_l p^j(l) s^j(l) Q^j(l) z(l)), for any student and any teachers.

    The factors s are 1, as in the paper, until `match_scales` sets them.

    It uses forward hooks on layers whose outputs are pre-activations: a hook on a teacher's layer reads z, and a hook
    on the student's layer returns the mixture, to which the student applies its activation. The nets are not edited,
    so `export` is a plain copy of the student without Q, w and teachers.

    Teachers are frozen and are not sub-modules: they are in neither `parameters()` nor `state_dict()`.
    """

    left_out: Tensor
    """(number of teachers,) bool: which of them are not linked in the whole run."""

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module],
        links: Sequence[Link],
        example: Tensor,
        *,
        transform: str = "conv1x1",
        rank: int = 64,
        mixing: Variant = "softmax",
        student_weight: float | None = None,
    ) -> None:
        """Link the nets; a dry run finds the shapes.

        Args:
            student: The net to train; called as `student(obs)`.
            teachers: Name -> net; frozen here.
            links: The candidate sets.
            example: One observation batch, for the dry run.
            transform: Kind of Q, see `build_transform`.
            rank: Rank of the low-rank transform.
            mixing: See `Mixing`.
            student_weight: p of the student at the start.

        Raises:
            UserError: a link names a layer or a teacher that does not exist.
        """
        super().__init__()
        check_links(links, student, teachers)
        self.student = student
        self.links = tuple(links)
        self.handover = 0.0
        """Share of the teachers' p that the hand-over has moved to the student, in [0, 1]."""
        self._teachers = dict(teachers)
        self.register_buffer("left_out", torch.zeros(len(self._teachers), dtype=torch.bool))
        self._absent = self._left_out = frozenset[str]()
        self.register_load_state_dict_post_hook(_read_left_out)  # type: ignore[no-untyped-call]
        self._features: dict[tuple[str, str], Tensor] = {}
        self._teachers_alone = False
        self._taps = tuple(dict.fromkeys((link.teacher, link.layer) for link in self.links))
        for teacher in self._teachers.values():
            teacher.eval().requires_grad_(False)
        self._tapped = {name: tuple(layer for owner, layer in self._taps if owner == name) for name in self._teachers}
        # Teachers whose later layers overwrite the outputs of linked ones in place.
        self._copied = {name for name, net in self._teachers.items() if overwrites(net, self._tapped[name], example)}

        shapes = self._dry_run(example)
        self.transforms = nn.ModuleList(
            build_transform(transform, shapes[link.teacher, link.layer], shapes["", link.student], rank)
            for link in self.links
        )
        self._feeds: dict[str, list[int]] = {}
        for index, link in enumerate(self.links):
            self._feeds.setdefault(link.student, []).append(index)
        self.mixing = Mixing({layer: len(feeds) for layer, feeds in self._feeds.items()}, mixing, student_weight)
        self.scales = nn.Module()
        for layer, feeds in self._feeds.items():
            self.scales.register_buffer(tensor_name(layer), torch.ones(1 + len(feeds)))
        self._link_shapes = tuple(
            LinkShape(
                link,
                shapes[link.teacher, link.layer],
                shapes["", link.student],
                type(q).__name__,
                sum(p.numel() for p in q.parameters()),
            )
            for link, q in zip(self.links, self.transforms, strict=True)
        )
        self._hooks = [student.get_submodule(layer).register_forward_hook(self._mix(layer)) for layer in self._feeds]

    @property
    def layers(self) -> tuple[str, ...]:
        """The linked student layers."""
        return tuple(self._feeds)

    @property
    def teachers(self) -> Mapping[str, nn.Module]:
        """The frozen teachers by name."""
        return self._teachers

    @property
    def taps(self) -> tuple[tuple[str, str], ...]:
        """The (teacher, layer) pairs of all links, absent teachers' too."""
        return self._taps

    @property
    def absent(self) -> frozenset[str]:
        """Teachers that are not linked now, and those left out for good; p is normalised without them."""
        return self._absent

    @absent.setter
    def absent(self, teachers: Collection[str]) -> None:
        self._absent = self._left_out.union(teachers)

    def link_table(self) -> tuple[LinkShape, ...]:
        """Shapes and sizes of every link."""
        return self._link_shapes

    @property
    def independent(self) -> bool:
        """Whether the student is independent: its output is then exactly that of the plain net."""
        return self.handover >= 1.0

    @torch.no_grad()
    def match_scales(self, obs: Tensor, links: Sequence[Link] | None = None) -> None:
        """Scale the links' outputs to the root mean square of the student's own pre-activations on `obs`.

        The pre-activations of a trained teacher are much larger than those of an untrained student. The factors are
        constants outside Q: in a Q with small entries, the steps of an optimiser like Adam would be relatively large.

        Args:
            obs: A batch of the student's input.
            links: The links to scale; default all.
        """
        if self.independent:
            return
        wanted = [link for link in links or self.links if link.teacher not in self.absent]
        self._scale(wanted, undisturbed(self.student, self.layers, obs), obs)

    def _scale(self, links: Sequence[Link], sizes: Mapping[str, Tensor], obs: Tensor) -> None:
        """Scale the outputs of `links` on `obs` to the norm of `sizes` at their student layer."""
        theirs = dict(zip(self.present_taps, self.teacher_features(obs), strict=True))
        for layer, feeds in self._feeds.items():
            for place, index in enumerate(feeds, start=1):
                if self.links[index] in links:
                    mapped = self.transforms[index](theirs[self._source(index)], torch.ones(()))
                    ratio = sizes[layer].norm() / mapped.norm()
                    self._scales(layer)[place] = ratio if ratio.isfinite() and ratio > 0 else 1.0

    @torch.no_grad()
    def admit(self, teacher: str, share: float, obs: Tensor, scaled: Sequence[Link]) -> None:
        """Link an absent teacher: p of its links at each layer sums to `share`.

        The outputs of its links in `scaled` are scaled to the norm that the layer's mixture has on `obs` without it, so
        that the pre-activations of these layers change by at most about 2 `share`, relatively.

        Args:
            teacher: Its name.
            share: In (0, 1).
            obs: A batch of the student's input.
            scaled: Links to scale; other links of the teacher get a factor of 1.
        """
        sizes = {layer: self.mixture(layer, obs) for layer in self.layers}
        for layer, feeds in self._feeds.items():
            places = [place for place, index in enumerate(feeds, start=1) if self.links[index].teacher == teacher]
            if places:
                self.mixing.admit(layer, places, share, self._absent_places(layer))
                self._scales(layer)[places] = 1.0
        self.absent -= {teacher}
        self._scale([link for link in scaled if link.teacher == teacher], sizes, obs)

    def set_student_weight(self, share: float) -> None:
        """Set p of the student to `share` at every layer; the linked teachers share the rest."""
        for layer in self.layers:
            absent = self._absent_places(layer)
            present = [place for place in range(1, 1 + len(self._feeds[layer])) if place not in absent]
            if present:
                self.mixing.admit(layer, present, 1.0 - share, absent)

    def reliance(self, teacher: str) -> float:
        """r: the sum of p over the teacher's links at a layer, averaged over the layers that it is linked to."""
        shares = [
            float(sum(p for link, p in zip(self.candidates(layer), others, strict=True) if link.teacher == teacher))
            for layer in self.layers
            if any(link.teacher == teacher for link in self.candidates(layer))
            for others in [self.layer_weights(layer)[1:].tolist()]
        ]
        return sum(shares) / len(shares) if shares else 0.0

    @property
    def present_taps(self) -> tuple[tuple[str, str], ...]:
        """`taps` without those of absent teachers: those of the result of `teacher_features`."""
        return tuple(tap for tap in self._taps if tap[0] not in self.absent) if self.absent else self._taps

    def _absent_places(self, layer: str) -> list[int]:
        """The entries of p^j that belong to absent teachers."""
        if not self.absent:
            return []
        return [place for place, link in enumerate(self.candidates(layer), start=1) if link.teacher in self.absent]

    @torch.no_grad()
    def teacher_features(self, obs: Tensor, outputs: dict[str, Any] | None = None) -> tuple[Tensor, ...]:
        """The linked teachers' pre-activations z(l) for `obs`; they depend only on `absent`, so compute them once.

        Args:
            obs: A batch of the student's input.
            outputs: A dictionary to fill with each teacher's output, by name.

        Returns:
            One (B, *shape) tensor for each distinct (teacher, layer), without absent teachers; empty once the student
            is independent.
        """
        if self.independent:
            return ()
        seen: dict[tuple[str, str], Tensor] = {}
        for name, teacher in self._teachers.items():
            if name in self.absent:
                continue
            layers = self._tapped[name]
            if outputs is None:
                features = features_of(teacher, layers, obs, copied=name in self._copied)
            else:
                outputs[name], features = with_features(teacher, layers, obs)
            seen |= {(name, layer): z for layer, z in features.items()}
        return tuple(seen[tap] for tap in self.present_taps)

    def forward(self, obs: Tensor, features: Sequence[Tensor] | None = None, state: Sequence[Any] = ()) -> Any:
        """The student's output with its links; `features` are the result of `teacher_features(obs)`.

        For a recurrent student with `state`, the other arguments of its `step`, the output of that.
        """
        student: Any = cast(Any, self.student).step if state else self.student
        if self.independent:
            return student(obs, *state)
        if features is None:
            features = self.teacher_features(obs)
        self._features = dict(zip(self.present_taps, features, strict=True))
        try:
            return student(obs, *state)
        finally:
            self._features = {}

    @torch.no_grad()
    def mixture(
        self, layer: str, obs: Tensor, features: Sequence[Tensor] | None = None, *, teachers_alone: bool = False
    ) -> Tensor:
        """The output (B, ...) of the student's `layer`, linked or not, on `obs` with all links.

        Args:
            layer: The layer's name.
            obs: A batch of the student's input.
            features: The result of `teacher_features(obs)`.
            teachers_alone: Set p of the student to 0 and normalise the teachers' p.
        """
        present = self.teacher_features(obs) if features is None else features
        self._features = dict(zip(self.present_taps, present, strict=True))
        self._teachers_alone = teachers_alone
        try:
            return features_of(self.student, (layer,), obs)[layer]
        finally:
            self._features, self._teachers_alone = {}, False

    @torch.no_grad()
    def leave_out_useless(self, obs: Tensor, needed: Collection[str] = ()) -> dict[str, str]:
        """Leave out, for good, the teachers that cannot teach on `obs`: linked ones, and absent ones too.

        Their features are not finite, or all of them are constant.

        Args:
            obs: A batch of the student's input.
            needed: Teachers that must not be left out.

        Returns:
            Teacher that is left out -> a sentence that says why.

        Raises:
            UserError: no teacher would be left, or one of `needed` is among them; the message names it.
        """
        faults = {name: why for name in self._teachers if (why := self._fault(name, obs))}
        lost = [name for name in faults if name in needed or len(faults) == len(self._teachers)]
        if lost:
            raise UserError(f"Teacher {lost[0]!r}: {faults[lost[0]]}. Leave it out of --teachers.")
        for place, name in enumerate(self._teachers):
            self.left_out[place] = name in faults
        self.read_left_out()
        return {name: f"Teacher {name!r} is left out: {why}." for name, why in faults.items()}

    def _fault(self, name: str, obs: Tensor) -> str:
        """Why a teacher cannot teach on `obs`; empty if it can."""
        seen = features_of(self._teachers[name], self._tapped[name], obs, copied=name in self._copied)
        for layer, z in seen.items():
            if not z.isfinite().all():
                return f"layer {layer} gives numbers that are not finite on the target's observations"
        if seen and all(bool((z == z[:1]).all()) for z in seen.values()):
            return "its features are the same on all of the target's observations, so it has nothing to teach"
        return ""

    def read_left_out(self) -> None:
        """Read `left_out`, which a checkpoint or another process has filled."""
        self._left_out = frozenset(compress(self._teachers, self.left_out.tolist()))
        self.absent = self._absent

    @torch.no_grad()
    def choose_channels(self, obs: Tensor, links: Sequence[Link], experts: Collection[str] = ()) -> list[str]:
        """Initialise the Qs of `links` to select the teachers' most useful channels on `obs` (`channels`).

        The links of a student's layer share its rows; the channels of the teachers in `experts` come first. A link
        whose channels cannot be ranked, or whose Q is not a matrix over channels, keeps its orthogonal initialisation.

        Returns:
            A sentence for each of the student's layers: the number of its rows that each teacher's layer gets.
        """
        return [line for layer in self.layers for line in self._choose_rows(layer, obs, links, experts)]

    def _choose_rows(self, layer: str, obs: Tensor, links: Sequence[Link], experts: Collection[str]) -> list[str]:
        feeds = [index for index in self._feeds[layer] if self.links[index] in links]
        sources = [self.links[index] for index in feeds]
        uses = [channel_uses(self._teachers[link.teacher], link.layer, obs) for link in sources]
        matrices = [
            _channel_matrix(self.transforms[index], use, self._link_shapes[index].student_shape[0])
            for index, use in zip(feeds, uses, strict=True)
        ]
        if not any(matrix is not None for matrix in matrices):
            return []
        known = [use if matrix is not None else None for use, matrix in zip(uses, matrices, strict=True)]
        rows = next(len(matrix) for matrix in matrices if matrix is not None)
        first = [source for source, link in enumerate(sources) if link.teacher in experts]
        row, parts = 0, []
        for link, matrix, channels in zip(sources, matrices, choose(known, rows, first), strict=True):
            if matrix is None:
                parts.append(f"{link.teacher}.{link.layer} left out of the choice (its channels cannot be ranked here)")
                continue
            matrix.zero_()
            matrix[torch.arange(row, row + len(channels)), channels] = 1.0
            row += len(channels)
            parts.append(f"{len(channels)} of {matrix.shape[1]} channels of {link.teacher}.{link.layer}")
        return [f"{layer} starts with {', '.join(parts)}."]

    def own_rows(self, layer: str) -> Tensor | None:
        """Which outputs of the student's `layer` no teacher feeds, (channels,) bool; None without such an output."""
        feeds = [index for index in self._feeds.get(layer, ()) if self.links[index].teacher not in self.absent]
        weights: list[Tensor | None] = [getattr(self.transforms[index], "weight", None) for index in feeds]
        matrices = [
            weight.detach().flatten(1)
            for index, weight in zip(feeds, weights, strict=True)
            if weight is not None and len(weight) == self._link_shapes[index].student_shape[0]
        ]
        if not matrices or len(matrices) < len(weights):
            return None
        unfed = torch.stack([(matrix == 0).all(1) for matrix in matrices]).all(0)
        return unfed if unfed.any() else None

    def layer_weights(self, layer: str) -> Tensor:
        """The effective p^j of `layer`, after the hand-over: (1 + teacher layers,), the student's first."""
        absent = self._absent_places(layer)
        p: Tensor = self.mixing(layer, absent)
        if self._teachers_alone and len(absent) < len(self._feeds[layer]):
            others = torch.cat([torch.zeros_like(p[:1]), p[1:]])
            return others / others.sum()
        if self.handover == 0.0:
            return p
        student = torch.zeros_like(p)
        student[0] = 1.0
        return torch.lerp(p, student, self.handover)

    @torch.no_grad()
    def weights(self) -> dict[str, float]:
        """The effective p for logs: `flow/p_student/<layer>` and `flow/p_teacher/<teacher>/<layer>`."""
        logged: dict[str, float] = {}
        for layer in self.layers:
            own, *others = self.layer_weights(layer).tolist()
            logged[f"flow/p_student/{layer}"] = own
            for link, p in zip(self.candidates(layer), others, strict=True):
                key = f"flow/p_teacher/{link.teacher}/{layer}"
                logged[key] = logged.get(key, 0.0) + p
        return logged

    def candidates(self, layer: str) -> tuple[Link, ...]:
        """The teacher members of L^j, in the order of `layer_weights(layer)[1:]`."""
        return tuple(self.links[index] for index in self._feeds[layer])

    def export(self) -> nn.Module:
        """A copy of the student alone, to save, evaluate and distribute."""
        hooked = {layer: self.student.get_submodule(layer)._forward_hooks for layer in self._feeds}
        saved = {layer: dict(hooks) for layer, hooks in hooked.items()}
        for hooks in hooked.values():
            hooks.clear()
        try:
            return copy.deepcopy(self.student)
        finally:
            for layer, hooks in hooked.items():
                hooks.update(saved[layer])

    def _mix(self, layer: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def hook(module: nn.Module, inputs: Any, z: Tensor) -> Tensor | None:
            if not self._features:
                return None
            # As few operations as possible: on maps as small as Atari's, dispatch takes longer than computation.
            own, *others = (self.layer_weights(layer) * self._scales(layer)).unbind()
            mapped: list[Tensor] = [
                self.transforms[index](self._features[self._source(index)], p)
                for index, p in zip(self._feeds[layer], others, strict=True)
                if self.links[index].teacher not in self.absent
            ]
            if not mapped:
                return None
            return torch.addcmul(reduce(torch.add, mapped), z, own)

        return hook

    def _scales(self, layer: str) -> Tensor:
        """Factors on the student's z (1) and on the Q z of each teacher layer: (1 + teacher layers,)."""
        scales: Tensor = getattr(self.scales, tensor_name(layer))
        return scales

    def _source(self, index: int) -> tuple[str, str]:
        return self.links[index].teacher, self.links[index].layer

    def _dry_run(self, example: Tensor) -> dict[tuple[str, str], tuple[int, ...]]:
        shapes = layer_shapes(self.student, [link.student for link in self.links], example)
        taken = zip(self._taps, self.teacher_features(example), strict=True)
        return {("", layer): shape for layer, shape in shapes.items()} | {tap: tuple(z.shape[1:]) for tap, z in taken}


def _channel_matrix(transform: nn.Module, uses: Tensor | None, rows: int) -> Tensor | None:
    """Q as a writable matrix (student's channels `rows`, teacher's channels); None if it is not such a matrix."""
    weight: Tensor | None = getattr(transform, "weight", None)
    if uses is None or weight is None or len(weight) != rows:
        return None
    matrix = weight.detach().flatten(1)
    return matrix if matrix.shape[1] == len(uses) else None


def _read_left_out(flow: KnowledgeFlow, incompatible: object) -> None:
    flow.read_left_out()
