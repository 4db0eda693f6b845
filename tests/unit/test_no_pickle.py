"""Nothing that can run code is read from bytes of others: no pickle, no eval, anywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parents[2]
_PACKAGES = ("service", "jobs", "models_cache")
_MODULES = frozenset({
    "pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib",
})  # fmt: skip
_BUILTINS = frozenset({"eval", "exec", "compile", "__import__"})
#: Calls that may run code, and the argument that keeps them from it.
_GUARDED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "np.save": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
_UNSAFE = frozenset({
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load",
    "torch.jit.load", "torch.package.PackageImporter", "pandas.read_pickle",
})  # fmt: skip
#: Where one of them stands all the same, and why.
_ALLOWED = {
    ("models_cache/backbone_weights.py", "import pickle"): "for the name of torch's error alone",
}


def dangers(source: str) -> Iterator[str]:
    """Yield what in a module's source could run code that was read."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        yield from (f"import {name}" for name in names if name.partition(".")[0] in _MODULES)
        if isinstance(node, ast.Call):
            yield from _danger_of(node)


def _danger_of(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    if name in _BUILTINS or name in _UNSAFE:
        yield name
    if name in _GUARDED:
        argument, safe = _GUARDED[name]
        given = {word.arg: word.value for word in call.keywords}.get(argument)
        if not (isinstance(given, ast.Constant) and given.value is safe):
            yield f"{name} without {argument}={safe}"


def test_no_module_reads_what_can_run_code() -> None:
    found = {
        (str(path.relative_to(_REPOSITORY)), danger)
        for package in _PACKAGES
        for path in (_REPOSITORY / package).rglob("*.py")
        for danger in dangers(path.read_text())
    }
    assert found == set(_ALLOWED)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader)",
        "eval(text)",
        "exec(text)",
        "torch.hub.load('a', 'b')",
    ],
)
def test_what_can_run_code_is_found(source: str) -> None:
    assert len(list(dangers(source))) == 1


@pytest.mark.parametrize(
    "source",
    ["torch.load(p, weights_only=True)", "yaml.safe_load(t)", "re.compile(p)", "network.eval()"],
)
def test_what_cannot_is_not(source: str) -> None:
    assert not list(dangers(source))
