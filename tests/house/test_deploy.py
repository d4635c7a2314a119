"""What deploy/ says is true: units that systemd reads, images that hold what they need, options that exist."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from parties import make_federation
from privet.__main__ import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = ("server", "node")
LARGEST_EXPOSURE = 20  # tenths of `systemd-analyze security`: 96 is an ordinary service, 0 is one that can do nothing
NODE_ONLY = {"torch", "opacus", "scikit-learn"}
# Runs privet where importing what only a node needs fails, as in the server's image.
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "opacus", "sklearn"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from privet.__main__ import run
sys.exit(run(sys.argv[1:]))
"""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def unit(name: str) -> Path:
    return DEPLOY / "systemd" / f"privet-{name}.service"


def settings_of(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(key, value) for key, _, value in (line.partition("=") for line in lines if re.match(r"[A-Z]\w+=", line))]


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def command(name: str) -> click.Command:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    return group.commands[name]


def default_of(name: str, option: str) -> Any:
    (found,) = [parameter for parameter in command(name).params if option in parameter.opts]
    return found.default


def check_options(words: list[str]) -> None:
    """Every option that a command line names exists. `words`: without `privet`."""
    known = {option for parameter in command(words[0]).params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known, words


def installed(name: str, folder: Path, drop_ins: tuple[str, ...] = ()) -> Path:
    """The unit as it would lie in /etc, with a program that is there."""
    for path in (unit(name), *(DEPLOY / "systemd" / f"privet-{name}.service.d" / one for one in drop_ins)):
        copy = folder / path.relative_to(DEPLOY / "systemd")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8").replace("/opt/privet/bin/privet", "/bin/true"))
    return folder / unit(name).name


# ---- the page ----


def test_every_message_that_the_page_explains_is_one_of_the_program() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8").split("## Troubleshooting")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", page, re.M)
    rooms = (path for room in ("privacy", "client", "server") for path in (ROOT / room).rglob("*.py"))
    source = "\n".join(path.read_text(encoding="utf-8") for path in rooms)
    said = re.sub(r"\{[^{}]*\}", "…", re.sub(r'"\s*f?"', "", source))
    messages = [message for cell in cells for message in re.findall(r"`(.*?)`", cell)]
    assert len(messages) > 20
    for message in messages:
        assert all(part.strip() in said for part in message.split("…")), message


# ---- systemd ----


@needs_systemd
@pytest.mark.parametrize(
    ("name", "drop_ins"), [("server", ()), ("node", ()), ("node", ("passphrase.conf",)), ("node", ("gpu.conf",))]
)
def test_systemd_understands_every_line(name: str, drop_ins: tuple[str, ...], tmp_path: Path) -> None:
    path = installed(name, tmp_path, drop_ins)
    told = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
    assert str(path.name) not in told.stderr


@needs_systemd
def test_a_line_that_systemd_does_not_understand_is_noticed(tmp_path: Path) -> None:
    """The check itself: verify ends with 0 for an unknown key, and says so."""
    path = installed("node", tmp_path)
    path.write_text(path.read_text().replace("NoNewPrivileges=", "NoNewPrivilegs="))
    told = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=60)
    assert path.name in told.stderr


@needs_systemd
@pytest.mark.parametrize("name", UNITS)
def test_units_are_hardened(name: str, tmp_path: Path) -> None:
    path = installed(name, tmp_path)
    words = ["systemd-analyze", "security", "--offline=yes", f"--threshold={LARGEST_EXPOSURE}", "--no-pager", str(path)]
    told = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stdout[-2000:]


@pytest.mark.parametrize("name", UNITS)
def test_units_are_not_root_and_name_options_that_exist(name: str) -> None:
    settings = dict(settings_of(unit(name)))
    assert settings["User"] == f"privet-{name}"
    assert f"PRIVET_HOME=/var/lib/{settings['StateDirectory']} " in settings["Environment"]
    assert (settings["Type"], settings["KillMode"], settings["NoNewPrivileges"]) == ("notify", "mixed", "yes")
    for path in (unit(name), *(DEPLOY / "systemd").glob(f"privet-{name}.service.d/*.conf")):
        for key, value in settings_of(path):
            if key == "ExecStart" and value:
                program, *words = value.split()
                assert program == "/opt/privet/bin/privet"
                check_options(words)


def test_whoever_stops_a_node_waits_longer_than_the_node_does() -> None:
    patience = default_of("node", "--stop-timeout")
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    assert seconds(dict(settings_of(unit("node")))["TimeoutStopSec"]) > patience
    assert seconds(compose["services"]["node"]["stop_grace_period"]) > patience


# ---- images ----


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions by stage, with those of the stage that each begins from before them."""
    text = (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text)).splitlines()
    found: dict[str, list[tuple[str, str]]] = {}
    for line in filter(None, map(str.strip, lines)):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = list(found.get(base, [("FROM", base)]))
            current = found[name]
        elif found:
            current.append((word, rest))
    return found


@pytest.mark.parametrize("name", UNITS)
def test_images_run_as_nobody_in_particular_and_say_how_they_are(name: str) -> None:
    stage = stages()[name]
    assert stage[0] == ("FROM", "${PYTHON}")
    assert [rest for word, rest in stage if word == "USER"] == ["10001:10001"]
    after = [word for word, _ in stage[[word for word, _ in stage].index("USER") :]]
    assert not {"RUN", "COPY", "ADD"} & set(after)
    assert ("ENTRYPOINT", '["privet"]') in stage
    assert ("CMD", f'["{name}"]') in stage
    (health,) = [rest for word, rest in stage if word == "HEALTHCHECK"]
    assert health.endswith(f'CMD ["privet", "{name}", "--healthcheck"]')
    check_options([name, "--healthcheck"])
    assert not [rest for word, rest in stage if word == "ADD"]
    given = " ".join(rest for word, rest in stage if word in ("ENV", "ARG"))
    assert not re.search(r"(?i)passphrase|secret|token", given)


@pytest.mark.parametrize("name", UNITS)
def test_images_install_pinned_versions_alone(name: str) -> None:
    commands = [part for word, rest in stages()[name] if word == "RUN" for part in rest.split("&&") if "pip " in part]
    assert len(commands) >= 2
    for one in commands:
        assert "-c /constraints.txt" in one or "--no-deps" in one or "/constraints.txt)" in one, one


def test_server_image_holds_everything_but_what_only_a_node_needs() -> None:
    def bare(line: str) -> str:
        return re.split(r"[\[><=; ]", line)[0].lower().replace("_", "-")

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (DEPLOY / "docker" / "server-requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = {bare(line) for line in lines if line and not line.startswith("#")}
    wanted = {bare(one) for one in (*project["dependencies"], *project["optional-dependencies"]["postgres"])}
    assert listed == wanted - NODE_ONLY


def test_what_the_images_copy_is_let_through() -> None:
    ignore = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert ignore[1] == "*"
    assert {"constraints.txt", "deploy/docker/server-requirements.txt"} <= allowed
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert {one.split(".")[1] for one in packages if "." in one} <= allowed
    assert all((ROOT / one).exists() for one in allowed)


def test_server_runs_where_nothing_that_trains_is_installed(tmp_path: Path) -> None:
    """The coordinator's commands too, up to the cost of a plan."""
    federation = make_federation(tmp_path)
    environment = os.environ | {"PRIVET_HOME": str(tmp_path)}

    def privet(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", WITHOUT, *words], env=environment, capture_output=True, text=True, timeout=120
        )

    with subprocess.Popen(
        [sys.executable, "-c", WITHOUT, "server"], env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            assert any("stop with" in line for line in iter(server.stdout.readline, ""))
            told = privet("server", "--healthcheck")
            assert told.returncode == 0, told.stderr
            assert federation.home.facts.enrolment_address in told.stdout
        finally:
            server.terminate()
            server.communicate(timeout=60)
    assert server.returncode == 0
    for words in (("plan", "show", "examples/three-hospitals.toml"), ("invite", "st-marys"), ("federation", "members")):
        told = privet(*(str(ROOT / word) if word.endswith(".toml") else word for word in words))
        assert told.returncode == 0, told.stderr


# ---- compose ----


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    return found


@pytest.mark.parametrize("name", sorted(services()))
def test_services_can_change_nothing_but_their_volume(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == "10001:10001"
    assert [one for one in service["volumes"] if not one.endswith(":ro")] == [
        f"{'node' if name == 'node' else 'server'}:/var/lib/privet"
    ]
    assert all(one.startswith("/tmp:") for one in service["tmpfs"])
    assert "privileged" not in service
    assert "environment" not in service


def test_services_open_the_servers_two_ports_and_metrics_to_this_machine_alone() -> None:
    ports = {name: service.get("ports", []) for name, service in services().items()}
    assert ports == {
        "server": ["9443:9443", "9444:9444", "127.0.0.1:9464:9464"],
        "node": ["127.0.0.1:9465:9464"],
        "coordinator": [],
    }


@pytest.mark.parametrize("name", UNITS)
def test_services_name_options_that_exist(name: str) -> None:
    service = services()[name]
    assert service["command"][0] == name
    check_options(service["command"])
    given = [one for one in service["command"] if one.startswith("/run/secrets/")]
    assert {one.removeprefix("/run/secrets/") for one in given} == set(service.get("secrets", []))
