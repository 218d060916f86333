"""The package from outside: the command `jaxaccel`, its version, and its types as checkers see them."""

import importlib.metadata
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import jaxaccel as ja
from jaxaccel import __main__ as command

ROOT = Path(__file__).parents[1]
TYPED = """
import jaxaccel as ja

result = ja.train(ja.load_recipe("digits"))
reveal_type(ja.optim.Schedule(name="linear").warmup)
reveal_type(result.summary)
ja.optim.Schedule(name="cosin")
ja.training.Data(wrkers=3)
"""


def test_version(capsys):
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxaccel {ja.__version__}\n"
    assert importlib.metadata.version("jaxaccel") == ja.__version__


def test_the_command_lists_what_there_is(capsys):
    assert command.main(["--help"]) == command.main([]) == 0
    said = capsys.readouterr().out
    assert all(f"jaxaccel {name}" in said for name in command.COMMANDS)
    modules = {path.stem for path in Path(ja.__file__).parent.iterdir() if "cli.run(main" in _text(path)}
    assert command.COMMANDS.keys() == modules - {"cli"}


def _text(path):
    file = path / "__main__.py" if path.is_dir() else path
    return file.read_text() if file.suffix == ".py" and file.exists() else ""


def test_a_mistyped_command(capsys):
    assert command.main(["trian"]) == 2
    assert capsys.readouterr().err == "error: no command 'trian'; did you mean train? (--help shows them)\n"


def test_a_command_runs_with_its_arguments():
    done = subprocess.run(
        [sys.executable, "-m", "jaxaccel", "train", "digits", "--epoch", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: unknown argument --epoch; did you mean --epochs? (--help shows all)\n"


def test_private_parts_have_an_upper_bound():
    """Of dependencies whose insides are used the next version is not taken before it was tried."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    bounded = {text.split(">")[0] for text in wanted if "<" in text}
    assert bounded >= {"jax", "jaxlib", "orbax-checkpoint", "tensorflow-datasets", "tyro"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The Python of an environment in which the wheel is installed, with all that this one has besides."""
    home = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(home)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home / "venv")], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = home / "venv" / "lib" / version / "site-packages"
    with zipfile.ZipFile(next(home.glob("*.whl"))) as wheel:
        wheel.extractall(packages)
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    (home / "program.py").write_text(TYPED)
    return home


@pytest.mark.parametrize("checker", ["pyright", pytest.param("mypy", marks=pytest.mark.slow)])
def test_type_checkers_see_the_types_of_an_installed_wheel(installed, checker):
    python = installed / "venv" / "bin" / "python"
    flag = "--pythonpath" if checker == "pyright" else "--python-executable"
    done = subprocess.run(
        [sys.executable, "-m", checker, flag, str(python), "program.py"],
        cwd=installed, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout
    assert "float" in said and ("dict[str, Any]" in said or "dict[builtins.str, Any]" in said), said
    assert '"cosin"' in said or "'cosin'" in said, said
    assert "wrkers" in said, said
    assert "missing library stubs" not in said and "py.typed" not in said, said
