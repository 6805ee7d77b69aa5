"""Gradio without its type stubs is Gradio."""

from importlib.util import module_from_spec

import gradio
from gradio import component_meta

from app.stubs import MODULE, WRITES, _Finder


def test_the_module_is_gradios_own_but_for_what_writes_stubs():
    assert _Finder().find_spec("gradio.events", gradio.__path__) is None
    spec = _Finder().find_spec(MODULE, gradio.__path__)
    assert spec.origin == component_meta.__file__
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert callable(getattr(component_meta, WRITES)), "Gradio writes its stubs elsewhere now"
    assert getattr(module, WRITES)(int, "int", []) is None
    assert vars(module).keys() == vars(component_meta).keys()
