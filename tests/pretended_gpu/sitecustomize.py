"""For processes with this folder on their ``PYTHONPATH``: a GPU that Ray is told of computes on the processor.

Python imports a module of this name as it starts. The model's actors refuse to start where a GPU is reserved that
is none; here they believe in it, so that where stages run can be seen without one.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

_CHOOSES = "pipeline.embed.embedder"


class _OnProcessors(importlib.abc.MetaPathFinder):
    """Finds the module that chooses devices, and changes what it chooses once it is loaded."""

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _CHOOSES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            choose = module.choose_embedder_settings
            module.choose_embedder_settings = lambda recipes, settings: choose(  # type: ignore[attr-defined]
                recipes, replace(settings, device="cpu")
            )

        loader: Any = spec.loader
        loader.exec_module = load_and_change
        return spec


sys.meta_path.insert(0, _OnProcessors())
