"""Interceptors: what stands between a caller and a module, outside everything else on the module.

An interceptor gets every call of the module and decides whether the module computes it. It hangs on
`_compiled_call_impl`, the attribute that `torch.nn.Module.__call__` asks first, so it is outside of
whatever replaces `forward` (offloading, adapters, other hooks) and of compiled code, and nothing of
these can drop it. The attribute is a property of a subclass that the module gets while it is
intercepted, as `torch.nn.utils.parametrize` does it; when the last interceptor goes, the class is
the old one again.
"""

from __future__ import annotations

import copyreg
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

Interceptor = Callable[..., Any]
"""Called as interceptor(module, compute, *args, **kwargs); compute(*args, **kwargs) runs the module
and whatever interceptors are further in."""

# How pickle makes a new object of a class, and the older way, for which any class will do.
_NEW: Any = vars(copyreg)["__newobj__"]
_RECONSTRUCT: Any = vars(copyreg)["_reconstructor"]
_INTERCEPTORS = "_mean_cache_interceptors"
_COMPILED = "_compiled_call_impl"
# The name given to `module.cache_context` around the call: 'cond', 'uncond'.
_context: ContextVar[str | None] = ContextVar("mean_cache_context", default=None)


def attach(
    module: torch.nn.Module, interceptor: Interceptor, name: str, innermost: bool = False
) -> None:
    """Puts an interceptor on the module, outside or inside of those that are there.

    None of them may have that name.
    """
    there, new = vars(module).get(_INTERCEPTORS, {}), {name: interceptor}
    module.__dict__[_INTERCEPTORS] = {**new, **there} if innermost else {**there, **new}
    become(module, _INTERCEPTORS, _intercepted)


def attached(module: torch.nn.Module, name: str) -> Interceptor | None:
    """The interceptor of that name on the module itself, if there is one."""
    return vars(module).get(_INTERCEPTORS, {}).get(name)


def detach(module: torch.nn.Module, name: str) -> None:
    """Takes the interceptor of that name off; nothing happens where there is none."""
    interceptors = vars(module).get(_INTERCEPTORS, {})
    interceptors.pop(name, None)
    if not interceptors:
        module.__dict__.pop(_INTERCEPTORS, None)
        unbecome(module)


def plain(module: torch.nn.Module) -> torch.nn.Module:
    """The module inside torch.compile's wrapper, where there is one."""
    return getattr(module, "_orig_mod", module)


def cache_context() -> str | None:
    """The name that the caller gave to this call of an intercepted module, if it gave one."""
    return _context.get()


def show(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
    """Shows a call that was answered without computing to the module's own forward hooks.

    What they return is not used: it is in the outputs that the answer was made from.
    """
    modules = [module] if plain(module) is module else [module, plain(module)]
    for one in modules:
        for key, hook in list(one._forward_pre_hooks.items()):
            given = (args, kwargs) if key in one._forward_pre_hooks_with_kwargs else (args,)
            hook(one, *given)
    for one in reversed(modules):
        for key, hook in list(one._forward_hooks.items()):
            given = (args, kwargs) if key in one._forward_hooks_with_kwargs else (args,)
            hook(one, *given, output)


def become(one: Any, key: str, subclass: Callable[[type, str], type]) -> None:
    """Gives the object the subclass of its class that looks at the attribute `key`."""
    if getattr(type(one), "_mean_cache_base", None) is None:
        object.__setattr__(one, "__class__", subclass(type(one), key))


def unbecome(one: Any) -> None:
    """Gives the object its own class again, unless somebody else has changed the class since."""
    base = vars(type(one)).get("_mean_cache_base")
    if base is not None:
        object.__setattr__(one, "__class__", base)


def subclass_of(base: type, key: str, namespace: dict[str, Any]) -> type:
    """A subclass under the name of its base, whose copies and pickles are of the base.

    Args:
        base: the class.
        key: an attribute that copies do not have.
        namespace: what the subclass defines.
    """

    parent: Any = base

    def reduced(self: Any, protocol: Any) -> Any:
        if key in vars(self):
            warnings.warn(
                f"a copy of a {base.__name__} that follows a schedule follows none itself and "
                "computes every step: call apply_mean_cache on the pipeline that uses the copy",
                stacklevel=3,
            )
        made = parent.__reduce_ex__(self, protocol)
        if not isinstance(made, tuple):
            return made
        build, args, *rest = made
        if build is _NEW:  # pickle would compare its class with the object's
            build, args = _RECONSTRUCT, (*args[:1], object, None)
        build, *args = (base if one is type(self) else one for one in (build, *args))
        if rest and isinstance(rest[0], dict):
            rest[0] = {name: value for name, value in rest[0].items() if name != key}
        return (build, tuple(args), *rest)

    about = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    body = {**about, **namespace, "__reduce_ex__": reduced, "_mean_cache_base": base}

    # diffusers' from_pipe takes over only parts whose class is among the expected ones.
    def same(cls: type, other: object) -> bool:
        return other is cls or other is base

    equal = {"__eq__": same, "__hash__": lambda cls: hash(base)}
    return type("_Same", (type(base),), equal)(base.__name__, (base,), body)


@functools.cache
def _intercepted(base: type, key: str) -> type:
    namespace: dict[str, Any] = {_COMPILED: property(_read, _write, _delete)}
    if hasattr(base, "cache_context"):
        namespace["cache_context"] = _cache_context(base)
    return subclass_of(base, key, namespace)


def _cache_context(base: Any) -> Callable[..., Any]:
    @functools.wraps(base.cache_context)
    @contextmanager
    def cache_context(self: Any, name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
        token = _context.set(name)
        try:
            with base.cache_context(self, name, *args, **kwargs):
                yield
        finally:
            _context.reset(token)

    return cache_context


@torch.compiler.disable
def _read(module: Any) -> Any:
    if vars(module).get(_INTERCEPTORS):
        return functools.partial(_call, module)
    return vars(module).get(_COMPILED)


def _write(module: Any, compiled: Any) -> None:
    vars(module)[_COMPILED] = compiled


def _delete(module: Any) -> None:
    vars(module).pop(_COMPILED, None)


# Not compiled themselves, where a compiled wrapper calls the module; what they call is.
@torch.compiler.disable(recursive=False)
def _call(module: Any, *args: Any, **kwargs: Any) -> Any:
    compute = functools.partial(_compute, module)
    for interceptor in vars(module)[_INTERCEPTORS].values():
        compute = functools.partial(interceptor, module, compute)
    return compute(*args, **kwargs)


@torch.compiler.disable(recursive=False)
def _compute(module: Any, *args: Any, **kwargs: Any) -> Any:
    compiled = vars(module).get(_COMPILED)
    return (module._call_impl if compiled is None else compiled)(*args, **kwargs)
