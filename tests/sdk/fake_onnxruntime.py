"""An onnxruntime that says it has CUDA and TensorRT, notes what each session is opened with, and runs it on the CPU.

For what the sdk asks of onnxruntime, and how it takes what onnxruntime says. Of a device there is only what its memory
does: an input on the CPU is copied to it when it is bound, and what is read from it is a copy.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

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
        self.OrtValue = OrtValue
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

    def get_provider_options(self):
        return {CUDA: {"device_id": "0"}, CPU: {}}

    def io_binding(self):
        binding = self._session.io_binding()
        return binding if self._providers[0] == CPU else Binding(binding)

    def run_with_iobinding(self, binding, options=None):
        self._session.run_with_iobinding(getattr(binding, "real", binding), options)

    def __getattr__(self, name):
        if name == "get_provider_graph_assignment_info":
            raise AttributeError(name)
        return getattr(self._session, name)


class OrtValue:
    """Of a device's memory."""

    places: ClassVar[list[str]] = []

    def __init__(self, real_value) -> None:
        self.real = real_value

    @classmethod
    def ortvalue_from_numpy(cls, array, device="cpu", number=0):
        cls.places.append(device)
        if device == "cpu":
            return real.OrtValue.ortvalue_from_numpy(array)
        return cls(real.OrtValue.ortvalue_from_numpy(array.copy()))

    def numpy(self):
        return self.real.numpy().copy()


class Binding:
    def __init__(self, binding) -> None:
        self.real, self._kept = binding, {}

    def bind_ortvalue_input(self, name, value):
        on_device = isinstance(value, OrtValue)
        self._kept[name] = value.real if on_device else real.OrtValue.ortvalue_from_numpy(value.numpy().copy())
        self.real.bind_ortvalue_input(name, self._kept[name])

    def bind_ortvalue_output(self, name, value):
        self.real.bind_ortvalue_output(name, value.real if isinstance(value, OrtValue) else value)


def install(monkeypatch, *available: str) -> Fake:
    """Put one in the place of the real module for a test."""
    fake = Fake(*available)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    return fake
