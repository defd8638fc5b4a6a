"""Conversion: put `FSQ` in place of the FSQ-like bottlenecks of someone else's model, keeping what they learned.

Two layouts are known, from their attributes, so that nothing is imported: vector-quantize-pytorch's ``FSQ`` (as of
1.32) and the official iFSQ code's ``GroupFSQ`` and ``RunningFSQ`` (commit e78bd70). Others come with a predicate and a
builder.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ifsq.quantizers import FSQ
from ifsq.quantizers.bounds import BOUNDS, FITTED, IFSQ_ALPHA
from ifsq.quantizers.cells import CELLS

PEER = "vector_quantize_pytorch"
RESIDUAL = ("ResidualFSQ", "GroupedResidualFSQ")
OFFICIAL = ("_levels", "factorized_bits", "do_simple_bound", "act_fun", "num_codebooks", "project_in")
ALIKE = ("_levels", "_basis")  # what copies and relatives of the first FSQ have


@dataclass(frozen=True)
class Converted:
    """A bottleneck that was swapped.

    names       where it is in the model; several where it is shared
    old, new    what it was and is, one line each
    same_codes  whether codes and digits are those of before (in float32, but for rounding)
    notes       what else is different
    """

    names: tuple[str, ...]
    old: str
    new: str
    same_codes: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """A module that looks like a bottleneck and was left as it is, and why."""

    names: tuple[str, ...]
    old: str
    reason: str


@dataclass(frozen=True)
class Conversion:
    """What `convert` did; ``str`` lists it.

    model  the model given, changed in place; another object only where the model itself is the bottleneck
    """

    model: nn.Module = field(repr=False)
    converted: tuple[Converted, ...]
    skipped: tuple[Skipped, ...]

    def __str__(self) -> str:
        lines = []
        for one in self.converted:
            change = "the same codes" if one.same_codes else "other codes: fine-tune the decoder at least"
            lines += [f"{_places(one.names)}: {one.old}", f"    -> {one.new}; {change}"]
            lines += [f"    note: {note}" for note in one.notes]
        for left in self.skipped:
            lines += [f"{_places(left.names)}: {left.old}", f"    left as it is: {left.reason}"]
        return "\n".join(lines)


class OfficialFSQ(FSQ):
    """`FSQ` behind the official code's calls: what `convert` puts in place of its GroupFSQ and RunningFSQ.

    `forward` returns ``(codes, None, (None, None, indices))``, or ``(codes, indices)`` for RunningFSQ. Indices keep the
    group axis: (b, h, w, g) or (b, n, g), several codebooks before it. RunningFSQ's statistics go on as before: they
    are logged there and have no effect.
    """

    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(self, *args: Any, momentum: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.momentum = momentum
        self.register_buffer("running_mean", None)
        self.register_buffer("running_var", None)

    @property
    def factorized_bits(self) -> list[int]:
        return list(self.groups)

    @property
    def group_codebook_sizes(self) -> list[int]:
        return list(self.group_sizes)

    def forward(self, z: Tensor) -> Any:
        if self.training and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                axes = [axis for axis in range(z.ndim) if axis != self.axis_of(z.ndim)]
                variance, mean = torch.var_mean(z.float(), axes, correction=0)
                self.running_mean.lerp_(mean.view_as(self.running_mean).to(self.running_mean), self.momentum or 0.0)
                self.running_var.lerp_(variance.view_as(self.running_var).to(self.running_var), self.momentum or 0.0)
        codes, indices = super().forward(z)
        if indices is not None and len(self.groups) == 1:
            indices = indices.unsqueeze(-1)
        return (codes, None, (None, None, indices)) if self.momentum is None else (codes, indices)

    def codes_to_indices(self, codes: Tensor) -> Tensor:
        """Codes of one codebook, channels last, (..., d) -> indices (..., g)."""
        indices = self.digits_to_indices(self.codes_to_digits(codes))
        return indices if len(self.groups) > 1 else indices.unsqueeze(-1)

    def indices_to_codes(self, indices: Tensor, project_out: bool = False) -> Tensor:
        """Indices (b, ..., g), or (b, n) -> codes (b, d, ...): channels always on axis 1."""
        indices = indices.unsqueeze(-1) if indices.ndim == 2 else indices
        if indices.shape[-1] != len(self.groups):
            raise ValueError(
                f"indices of shape {tuple(indices.shape)}: expected a last axis of {len(self.groups)} groups"
            )
        digits = self.indices_to_digits(indices if len(self.groups) > 1 else indices.squeeze(-1))
        codes = self.digits_to_codes(digits)
        codes = codes.flatten(-2) if self.keep_num_codebooks_dim else codes
        return (self.project_out(codes) if project_out else codes).movedim(-1, 1)

    def group_index_to_global(self, indices: Tensor) -> Tensor:
        """Indices (..., g) -> one index (...) of the whole codebook."""
        digits = self.indices_to_digits(indices if len(self.groups) > 1 else indices.squeeze(-1))
        whole = FSQ(self.levels, bound="tanh", digit_order=self.digit_order)
        return whole.digits_to_indices(digits)


def convert(
    model: nn.Module,
    to: str = "ifsq",
    *,
    cells: str | None = None,
    alpha: float = IFSQ_ALPHA,
    predicate: Callable[[str, nn.Module], bool] | None = None,
    build: Callable[[nn.Module], nn.Module] | None = None,
) -> Conversion:
    """Swap every FSQ-like bottleneck in ``model`` for an `FSQ` with the bound ``to``, in place, and list what was done.

    to         name of a bound, see `bounds`. ``tanh`` keeps the codes of the first FSQ and of the peer; ``ifsq`` those
               of the official setting. Fitted ones start as ``ifsq``; `calibrate` fits them
    cells      cell rule; None keeps the module's. Even levels need ``equal`` or ``symmetric`` unless ``to="tanh"``
    alpha      slope of ``ifsq``
    predicate  (name, module) -> whether to convert it; without it, every module whose layout is known
    build      module -> what to put in its place, usually an `FSQ`, for every module that ``predicate`` chooses;
               without it, by the known layouts

    Kept: projections and rotation (the same objects, so optimizers hold on to them, and state dicts load both ways
    where the new bound has no state of its own), device, dtype, training flag, digit order, index shape, and one module
    where one was shared. A converted peer returns `Quantized`, which unpacks as its (codes, indices) did; the official
    modules return what they returned (`OfficialFSQ`). Raises ValueError, before anything is changed, where nothing can
    be converted, and where the levels forbid the bound or the cells.
    """
    if to not in BOUNDS:
        raise ValueError(f"to={to!r}: expected one of {', '.join(BOUNDS)}")
    if cells is not None and cells not in CELLS:
        raise ValueError(f"cells={cells!r}: expected one of {', '.join(CELLS)}")
    if build is not None and predicate is None:
        raise ValueError("build without predicate: expected a predicate that says which modules to build from")
    target = _Target(to, cells, alpha)
    plans: dict[int, _Plan] = {}
    for place in _walk(model, predicate, plans):
        if id(place.module) not in plans:
            plans[id(place.module)] = _plan(place, predicate, build, target)
        plans[id(place.module)].places.append(place)
    swaps = [(plan, plan.new) for plan in plans.values() if plan.new is not None]
    skipped = tuple(Skipped(plan.names, plan.old, plan.reason) for plan in plans.values() if plan.new is None)
    if not swaps:
        looked = f"{skipped[0].names[0] or 'the model'}: {skipped[0].reason}" if skipped else "no FSQ-like module in it"
        raise ValueError(f"nothing to convert in {type(model).__name__}: {looked}")

    for plan, new in swaps:
        plan.adopt(new)
        for place in plan.places:
            if place.parent is None:
                model = new
            else:
                setattr(place.parent, place.key, new)
    converted = (Converted(plan.names, plan.old, _line(new), plan.same_codes, tuple(plan.notes)) for plan, new in swaps)
    return Conversion(model, tuple(converted), skipped)


class _Place(NamedTuple):
    name: str
    parent: nn.Module | None
    key: str
    module: nn.Module


class _Target(NamedTuple):
    to: str
    cells: str | None
    alpha: float


@dataclass
class _Plan:
    """What is to become of a module: ``new`` in its place, or a reason why not."""

    module: nn.Module
    old: str
    new: nn.Module | None = None
    reason: str = ""
    same_codes: bool = False
    known: bool = True
    notes: list[str] = field(default_factory=list)
    places: list[_Place] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(place.name for place in self.places)

    def adopt(self, new: nn.Module) -> None:
        """Hand the old module's learned parts, device and mode to the new one."""
        old = self.module
        state = next((t for t in (*old.parameters(), *old.buffers())), None)
        if state is not None:
            new.to(state.device)
        new.train(old.training)
        if not self.known:
            return
        new.project_in, new.project_out = old.project_in, old.project_out
        for name in ("orthogonal_rot", "running_mean", "running_var"):
            if getattr(old, name, None) is not None:
                setattr(new, name, getattr(old, name))


def _walk(
    model: nn.Module, predicate: Callable[[str, nn.Module], bool] | None, plans: dict[int, _Plan]
) -> Iterator[_Place]:
    """Places of every module that is chosen or looks like a bottleneck, from the outside in, not inside one of them."""

    def visit(place: _Place) -> Iterator[_Place]:
        if id(place.module) in plans or _is_candidate(place, predicate):
            yield place
            return
        for key, child in place.module._modules.items():
            if child is not None:
                yield from visit(_Place(f"{place.name}.{key}" if place.name else key, place.module, key, child))

    yield from visit(_Place("", None, "", model))


def _is_candidate(place: _Place, predicate: Callable[[str, nn.Module], bool] | None) -> bool:
    if predicate is not None:
        return bool(predicate(place.name, place.module))
    return isinstance(place.module, FSQ) or _is_residual(place.module) or _has(place.module, ALIKE)


def _plan(
    place: _Place,
    predicate: Callable[[str, nn.Module], bool] | None,
    build: Callable[[nn.Module], nn.Module] | None,
    target: _Target,
) -> _Plan:
    module = place.module
    where = f"{place.name or type(module).__name__}: "
    if build is not None:
        new = build(module)
        if not isinstance(new, nn.Module):
            raise ValueError(f"{where}build returned {type(new).__name__}: expected a module")
        notes = _hooks(module)
        kept = {id(p) for p in new.parameters()}
        if any(id(p) not in kept for p in module.parameters()):
            notes.append("the builder left some of the old module's parameters behind")
        return _Plan(module, _line(module), new, known=False, notes=notes)
    plan = _plan_known(module, target, where)
    if predicate is not None and plan.new is None:
        raise ValueError(f"{where}the predicate chose it, but {plan.reason}")
    return plan


def _plan_known(module: nn.Module, target: _Target, where: str) -> _Plan:
    """A plan by the known layouts. Raises ValueError where the levels forbid the target."""
    if isinstance(module, FSQ):
        return _Plan(module, _line(module), reason="it is an ifsq.FSQ already")
    if _is_residual(module):
        return _Plan(module, _line(module), reason="residual quantizers scale what they quantize by rules of their own")
    try:
        if _has(module, OFFICIAL):
            return _plan_official(module, target)
        if _is_peer(type(module)):
            return _plan_peer(module, target)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None
    if any(_is_peer(base) for base in type(module).__mro__):
        reason = f"{type(module).__name__} is a subclass of {PEER}.FSQ"
    else:
        reason = f"the layout of {type(module).__module__}.{type(module).__name__} is unknown"
    return _Plan(module, _line(module), reason=f"{reason}: pass predicate and build")


def _plan_peer(module: Any, target: _Target) -> _Plan:
    levels = _levels(module)
    # What a version before 1.32 does not have yet is off.
    options = {
        name: getattr(module, name, default)
        for name, default in (
            ("channel_first", False),
            ("return_indices", True),
            ("orthogonal_rotation", False),
            ("noise_dropout", 0.0),
        )
    }
    clamp = getattr(module, "bound_hard_clamp", False)
    cells = "symmetric" if getattr(module, "preserve_symmetry", False) else "paper"
    old = _describe(f"{PEER}.FSQ", levels, module, "clamp" if clamp else "tanh", cells)
    if clamp and target.to in ("ifsq", "gaussian"):
        reason = f"bound_hard_clamp=True: its latents are bounded already, and {target.to} would bound them again; "
        return _Plan(module, old, reason=f"{reason}to='tanh' keeps the clamp, fitted bounds can replace it")
    notes = _hooks(module)
    if options["noise_dropout"]:
        notes.append("noise_dropout moved codes by up to 0.5 whatever L; now by up to half a cell")
    if not getattr(module, "force_quantization_f32", True):
        notes.append("force_quantization_f32=False: codes are now computed in float32")
    new = _build(
        FSQ,
        levels,
        module,
        target,
        cells,
        bound_hard_clamp=clamp and target.to == "tanh",
        projection_has_bias=getattr(module.project_in, "bias", None) is not None,
        **options,
    )
    # Not to="clamp" with paper cells: those of the first FSQ are a thousandth narrower.
    same = target.to == "tanh" or (clamp and (target.to, cells) == ("clamp", "symmetric"))
    return _Plan(module, old, new, same_codes=same and new.cells == cells, notes=notes + _parameters(target))


def _plan_official(module: Any, target: _Target) -> _Plan:
    levels = _levels(module)
    bound, slope = "tanh", None
    if module.do_simple_bound:
        # The activation is a function without a name: both that exist are 2*sigmoid(alpha*x) - 1.
        at = module.act_fun(torch.tensor([0.5, 1.0], dtype=torch.float64))
        slope = round(2 * math.atanh(float(at[1])), 6)
        if not math.isclose(float(at[0]), math.tanh(slope / 4), abs_tol=1e-6):
            raise ValueError("act_fun is not of the form 2*sigmoid(alpha*x) - 1: pass predicate and build")
        bound = f"ifsq, alpha={slope:g}"
    running = getattr(module, "running_mean", None) is not None
    momentum = float(module.momentum) if running else None
    new = _build(OfficialFSQ, levels, module, target, "paper", groups=list(module.factorized_bits), momentum=momentum)
    same = target.to == "tanh" if slope is None else (target.to, target.alpha) == ("ifsq", slope)
    old = _describe("RunningFSQ" if running else "GroupFSQ", levels, module, bound, "paper")
    return _Plan(module, old, new, same_codes=same and new.cells == "paper", notes=_hooks(module) + _parameters(target))


def _build(cls: type[FSQ], levels: list[int], module: Any, target: _Target, cells: str, **options: Any) -> FSQ:
    with torch.random.fork_rng(devices=[]):  # the projections it draws are replaced
        return cls(
            levels,
            dim=module.dim,
            num_codebooks=module.num_codebooks,
            keep_num_codebooks_dim=module.keep_num_codebooks_dim,
            bound=target.to,
            alpha=target.alpha,
            cells=target.cells or cells,
            **options,
        )


def _levels(module: Any) -> list[int]:
    if module._levels.is_meta:
        raise ValueError("its levels are on the meta device: convert the model where its weights are")
    return [int(L) for L in module._levels]


def _has(module: nn.Module, names: tuple[str, ...]) -> bool:
    return all(hasattr(module, name) for name in names)


def _is_peer(cls: type) -> bool:
    return cls.__name__ == "FSQ" and cls.__module__.partition(".")[0] == PEER


def _is_residual(module: nn.Module) -> bool:
    return any(base.__name__ in RESIDUAL and base.__module__.startswith(PEER) for base in type(module).__mro__)


def _hooks(module: nn.Module) -> list[str]:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    count = sum(map(len, hooks))
    return [f"{count} hook{'s' * (count > 1)} of the old module left behind"] if count else []


def _parameters(target: _Target) -> list[str]:
    if target.to == "learned":
        return ["the bound has parameters: give them to the optimizer"]
    return ["the bound starts as ifsq: ifsq.calibrate fits it"] if target.to in FITTED else []


def _describe(kind: str, levels: list[int], module: Any, bound: str, cells: str) -> str:
    width = len(levels) * module.num_codebooks
    parts = [f"levels={levels}", f"bound={bound}", f"cells={cells}"]
    parts += [f"num_codebooks={module.num_codebooks}"] if module.num_codebooks > 1 else []
    parts += [f"projections {module.dim} -> {width} -> {module.dim}"] if module.dim != width else []
    return f"{kind}({', '.join(parts)})"


def _line(module: nn.Module) -> str:
    """A module in one line."""
    if isinstance(module, FSQ):
        kind = type(module).__name__
        name = "ifsq.FSQ" if kind == "FSQ" else kind
        return _describe(name, list(module.levels), module, module.bound.extra_repr(), module.cells)
    return f"{type(module).__name__}({module.extra_repr()})"


def _places(names: tuple[str, ...]) -> str:
    return ", ".join(name or "(the model itself)" for name in names)
