"""The main job as a module, and settings with which it takes a second."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SCRIPT = Path(__file__).parents[1] / "train.py"


def load_train() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


train = load_train()
TINY = train.Config(
    model="mlp",
    epochs=3,
    augment=False,
    sparsities=(0.5,),
    fine_tune_epochs=1.0,
    checkpoint_every=1000,
    progress=False,
)


@dataclasses.dataclass(frozen=True)
class Run:
    out: Path
    rows: list
    printed: str
