"""An onnxruntime that says it has CUDA and TensorRT, notes what each session is opened with, and runs it on the CPU.

For what the sdk asks of onnxruntime, and how it takes what onnxruntime says; nothing about a device is learnt here.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import onnxruntime as real

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


class Fake(types.ModuleType):
    """The module.

    opened: (file's name, providers, free dimensions that were fixed), one for each session.
    starts: which providers start, by file's name and provider.
    nodes: what onnxruntime says of a session's nodes, as (provider, operator), by file's name; None: it cannot say.
    """

    __version__ = "9.9.9"

    def __init__(self, *available: str) -> None:
        super().__init__("onnxruntime")
        self.available = [*available]
        self.opened: list[tuple[str, list[tuple[str, dict[str, str]]], dict[str, int]]] = []
        self.preloads = 0
        self.starts: Callable[[str, str], bool] = lambda file, provider: True
        self.fails: Callable[[str, str], bool] = lambda file, provider: False
        self.nodes: Callable[[str, list[str]], list[tuple[str, str]] | None] = lambda file, providers: None

    def get_available_providers(self) -> list[str]:
        return [*self.available]

    def preload_dlls(self) -> None:
        self.preloads += 1

    def get_ep_devices(self) -> list[object]:
        kind = types.SimpleNamespace(name="GPU")
        return [types.SimpleNamespace(ep_name=CUDA, device=types.SimpleNamespace(type=kind, vendor="NVIDIA"))]

    def InferenceSession(self, file, options, providers, enable_fallback):
        assert enable_fallback is False
        name = Path(file).name
        self.opened.append((name, providers, options.fixed))
        for provider, _ in providers:
            if self.fails(name, provider):
                raise RuntimeError(f"{provider} has no memory left")
        return Session(self, name, real.InferenceSession(file, options.real), [p for p, _ in providers])

    def SessionOptions(self):
        return SessionOptions()

    def __getattr__(self, name):
        return getattr(real, name)


class SessionOptions:
    def __init__(self) -> None:
        self.__dict__["real"] = real.SessionOptions()
        self.__dict__["fixed"] = {}

    def __setattr__(self, name, value):
        setattr(self.real, name, value)

    def __getattr__(self, name):
        return getattr(self.real, name)

    def add_free_dimension_override_by_name(self, name, size):
        self.fixed[name] = size
        self.real.add_free_dimension_override_by_name(name, size)


class Session:
    def __init__(self, module, name, session, providers) -> None:
        self._module, self._name, self._session = module, name, session
        self._providers = [p for p in providers if module.starts(name, p)]
        if module.nodes(name, self._providers) is not None:
            self.get_provider_graph_assignment_info = self._nodes

    def get_providers(self):
        return self._providers

    def _nodes(self):
        return [
            types.SimpleNamespace(
                ep_name=provider, get_nodes=lambda operator=operator: [types.SimpleNamespace(op_type=operator)]
            )
            for provider, operator in self._module.nodes(self._name, self._providers)
        ]

    def __getattr__(self, name):
        if name == "get_provider_graph_assignment_info":
            raise AttributeError(name)
        return getattr(self._session, name)


def install(monkeypatch, *available: str) -> Fake:
    """Put one in the place of the real module for a test."""
    fake = Fake(*available)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    return fake
