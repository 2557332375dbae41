"""The import rules of the design: imports run down only, in no circles."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = [
    ROOT / "main.py",
    *sorted(
        p for top in ("configs", "data_pipeline", "infantxray") for p in (ROOT / top).rglob("*.py")
    ),
]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imported(path):
    """Full names of what a file imports, at the top or within functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []  # Never executed.
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                # A module of the project, or a name within one.
                yield node.module if node.module in MODULES and full not in MODULES else full


IMPORTS = {name: sorted(set(imported(path))) for name, path in MODULES.items()}


def within(name, *tops):
    return any(name == top or name.startswith(top + ".") for top in tops)


def foreign(name):
    return not within(name, *sys.stdlib_module_names)


def offenders(where, allowed):
    """`module: import` for imports of the modules `where` that are not allowed."""
    return [
        f"{module}: {name}"
        for module, names in IMPORTS.items()
        if where(module)
        for name in names
        if not allowed(name)
    ]


def test_there_is_something_to_check():
    assert {"main", "configs.common", "data_pipeline.loader", "infantxray.models"} <= MODULES.keys()
    assert "infantxray.training.losses" in IMPORTS["infantxray.stage_two.loss"]
    assert "infantxray.models" in IMPORTS["infantxray.runs.settings"]  # Within a function.


# What each room of infantxray may import of the others: those of lower floors, and on its own floor
# those to its left.
FLOORS = {
    "models": (),
    "runs": ("models", "training"),
    "evaluation": ("models", "training"),
    "training": ("models",),
    "features": ("models", "training", "evaluation", "runs"),
    "stage_one": ("models", "training", "evaluation", "runs", "features"),
    "stage_two": ("models", "training", "evaluation", "runs", "features", "stage_one"),
    "studies": ("models", "training", "evaluation", "runs", "features", "stage_one", "stage_two"),
    "export_assets": (),
}
FLOORS["reports"] = (*FLOORS["studies"], "studies")
FLOORS["export"] = (*FLOORS["reports"], "reports", "export_assets")
FLOORS["api"] = (*FLOORS["reports"], "export")
FLOORS["commands"] = (*FLOORS["reports"], "reports", "api", "export")


@pytest.mark.parametrize("room", FLOORS)
def test_imports_run_down_only(room):
    allowed = tuple(f"infantxray.{name}" for name in (room, *FLOORS[room]))
    assert (
        offenders(
            lambda m: within(m, f"infantxray.{room}"),
            lambda name: (
                not within(name, "infantxray") or within(name, *allowed) or name == "infantxray"
            ),
        )
        == []
    )


def test_every_room_has_a_floor():
    rooms = {name.split(".")[1] for name in MODULES if name.startswith("infantxray.")}
    assert rooms == {*FLOORS, "__main__"}


def test_there_are_no_circles():
    """Of modules; imports for type checking do not count."""
    graph = {
        name: {target for target in names if target in MODULES and target != name}
        for name, names in IMPORTS.items()
    }
    while free := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in free:
            del graph[name]
    assert graph == {}


def test_no_command_imports_another():
    commands = [name for name in MODULES if within(name, "infantxray.commands")]
    for command in commands:
        others = [name for name in commands if name not in (command, "infantxray.commands")]
        assert not [name for name in IMPORTS[command] if within(name, *others)]


def test_the_configuration_stops_at_the_door():
    """Rooms take plain arguments or dataclasses, so that each can be called from Python."""
    doors = ("configs", "infantxray.commands", "infantxray.runs.settings", "infantxray.__main__")
    rooms = {name: path for name, path in MODULES.items() if not within(name, *doors)}
    assert offenders(lambda m: m in rooms, lambda name: not within(name, "ml_collections")) == []
    found = []
    for name, path in rooms.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.Lambda)):
                arguments = node.args
                every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
                # The recorded settings of a run, a plain dictionary, may be read and shown.
                plain = ("dict", "Mapping")
                for argument in every:
                    annotation = ast.unparse(argument.annotation) if argument.annotation else ""
                    if argument.arg == "config" and not annotation.startswith(plain):
                        found.append(f"{name}:{node.lineno}")
    assert found == []


def test_configs_import_ml_collections_alone():
    assert (
        offenders(
            lambda m: within(m, "configs"),
            lambda name: within(name, "ml_collections", "configs"),
        )
        == []
    )


def test_data_pipeline_knows_nothing_of_networks():
    heavy = (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax",
        "clu",
        "tensorflow",
        "infantxray",
        "configs",
    )
    assert offenders(lambda m: within(m, "data_pipeline"), lambda n: not within(n, *heavy)) == []


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("infantxray.training.losses", ("jax", "optax")),
        ("infantxray.training.augment", ("jax", "infantxray.models.input_scale")),
        ("infantxray.evaluation.calibration", ("numpy",)),
    ],
)
def test_losses_and_metrics_import_no_model(module, allowed):
    assert (
        offenders(lambda m: m == module, lambda name: not foreign(name) or within(name, *allowed))
        == []
    )


def test_nothing_imports_main_or_the_tests():
    assert (
        offenders(lambda m: True, lambda name: not within(name, "main", "tests", "benchmarks"))
        == []
    )


def test_nothing_but_the_command_line_imports_configs():
    """The code gets its configuration handed in."""
    allowed = ("configs", "infantxray.__main__", "infantxray.commands.study")
    assert (
        offenders(lambda m: not within(m, *allowed), lambda name: not within(name, "configs")) == []
    )


def test_tensorflow_is_reached_in_one_place():
    """Its import takes seconds; `flax.training` brings it along."""
    heavy = ("tensorflow", "clu.metric_writers", "clu.periodic_actions", "flax.training")
    heavy += ("tensorboard", "tensorboardX")
    assert (
        offenders(lambda m: m != "infantxray.training.writers", lambda n: not within(n, *heavy))
        == []
    )
    text = MODULES["infantxray.training.writers"].read_text(encoding="utf-8")
    top = [n for n in ast.parse(text).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert not any("clu" in ast.unparse(n) or "tensor" in ast.unparse(n) for n in top)


def test_orbax_and_matplotlib_have_their_homes():
    for library, *homes in (
        ("orbax", "infantxray.training.checkpoints"),
        ("matplotlib", "infantxray.reports.plots"),
    ):
        where = [m for m, names in IMPORTS.items() if any(within(n, library) for n in names)]
        assert where == homes


def test_no_circles():
    done, path = set(), []

    def visit(module):
        if module in path:
            pytest.fail("circle: " + " -> ".join([*path[path.index(module) :], module]))
        if module in done:
            return
        path.append(module)
        for name in IMPORTS[module]:
            if name in MODULES and name != module:
                visit(name)
        path.pop()
        done.add(module)

    for module in MODULES:
        visit(module)
    assert done == MODULES.keys()
