"""The package's own modules and public names, as the tests find them."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import adv_lib


def modules() -> list[str]:
    """The full names of all modules of adv_lib, those of its packages, too."""
    return [module.name for module in pkgutil.walk_packages(adv_lib.__path__, f"{adv_lib.__name__}.")]


def documented() -> Iterator[ModuleType]:
    """The modules that a reader imports functions from: not the private ones, and not the checks."""
    for module in pkgutil.iter_modules(adv_lib.__path__):
        if module.name != "checks" and not module.name.startswith("_"):
            yield importlib.import_module(f"{adv_lib.__name__}.{module.name}")


def public() -> Iterator[tuple[str, object]]:
    """The public functions and classes of those modules, by name: "threat.Ball"."""
    for module in documented():
        for name, member in vars(module).items():
            own = f"{getattr(member, '__module__', '')}.".startswith(f"{module.__name__}.")
            known = inspect.isclass(member) or inspect.isfunction(member)
            if own and known and not name.startswith("_"):
                yield f"{module.__name__.removeprefix('adv_lib.')}.{name}", member


def public_methods(name: str, member: type) -> Iterator[tuple[str, object]]:
    """The public methods that a class defines itself: "threat.Ball.support"."""
    for method, function in vars(member).items():
        if inspect.isfunction(inspect.unwrap(function)) and not method.startswith("_"):
            yield f"{name}.{method}", function
