"""What the planner relies on in every measurement module."""

import importlib
import subprocess
import sys

import pytest

from compress.plugins import StepConfig

MODULES = ["quality", "divergence", "latency", "memory"]


@pytest.mark.parametrize("name", MODULES)
def test_a_measurement_keeps_the_contract(name):
    module = importlib.import_module(f"compress.measure.{name}")
    assert issubclass(module.Config, StepConfig)
    assert isinstance(module.VERSION, int)
    assert callable(module.measure)
    assert all(field.description for field in module.Config.model_fields.values())


def test_the_planner_imports_them_without_the_heavy_packages():
    modules = ", ".join(f"compress.measure.{name}" for name in [*MODULES, "cost"])
    heavy = "{'torch', 'transformers', 'lm_eval', 'scipy', 'numpy'}"
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
