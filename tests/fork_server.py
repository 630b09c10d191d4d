"""Processes that start with torch, transformers and accelerate imported: forks of one process that has imported them.

A process that trains a tiny model for a few steps spends a second on it, after four on imports of other people's
packages; a launcher needs three for accelerate's. `run` is `subprocess.run`, with processes that are forked instead:
the command's own, and all Python processes that it starts, so that `accelerate launch`, torchrun and the ranks below
them are what they are otherwise: processes, children of the one that started them, with their own command line,
environment, session and output. unsloth, trl and this package are not among what is imported before: each process does
so itself, in its own order, with its own variables.

What a fork can't show: what a variable does that one of `IMPORTED` reads at its import (a command with such a variable
is started as ever, `AT_IMPORT`), an import that comes too early or too late for torch or transformers, ranks of
which each orders its sets of strings in its own way, and what C++ does after Python's own end (`leave_what_is_shared`).
Tests of these start real processes, and each kind of entry has a
test that does. With REAL_PROCESSES=1 every test does, and everywhere but on Linux.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import importlib
import json
import logging
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from types import ModuleType
from typing import Any

IMPORTED = (
    *("torch", "torch._dynamo", "torch._inductor.compile_fx", "torch.distributed.tensor", "torch.distributed.run"),
    *("transformers.trainer", "peft", "datasets", "bitsandbytes", "accelerate.commands.launch"),
)
"""All that unsloth imports, but for a tenth of a second."""
AT_IMPORT = re.compile(
    "(CUDA|HF|HUGGINGFACE|LD|MKL|PYTORCH|TORCH_LOGS|TORCHDYNAMO|TRANSFORMERS|XDG)_(?!XET_|ALLOC_CONF).*"
    "|HOME|PYTHON(?!PATH|UNBUFFERED).*"
)
"""Variables that the modules of `IMPORTED`, or Python, read once; without those that unsloth sets itself."""
ROOM = "ROOM_FOR_OTHER_VARIABLES"
MOST = 2**17
"""Bytes of one call."""
SET_SUBREAPER = 36
"""Of Linux's prctl: orphans below this process become its children."""
SHOWN = 2**16
"""Bytes that a process's command line may have, and its environment."""


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of a Python process, forked."""
    with forked():
        return subprocess.run(command, **options)


@contextmanager
def forked() -> Iterator[None]:
    """Fork what is started here, and below that."""
    if os.environ.get("REAL_PROCESSES") or sys.platform != "linux":
        yield
        return
    as_ever = subprocess.Popen._execute_child
    _install(*_server())
    try:
        yield
    finally:
        subprocess.Popen._execute_child = as_ever


@functools.cache
def _server() -> tuple[socket.socket, dict[str, str]]:
    """Where the server of this test session is called, and its environment; it ends with the session."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = [sys.executable, __file__, str(theirs.fileno()), "-" * SHOWN]
    environment = {**os.environ, ROOM: "-" * SHOWN}
    process = subprocess.Popen(words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment)
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours, environment


def _install(server: socket.socket, known: Mapping[str, str]) -> None:
    """Have Python processes that this one starts forked by `server`, which was started with the environment `known`."""
    as_ever = subprocess.Popen._execute_child

    def execute(
        self: Any, args: Any, executable: Any, preexec: Any, close: Any, keep: Any, cwd: Any, env: Any, *more: Any
    ) -> None:
        _startup, _flags, shell, read, p2c, c2p, write, err, error, *rest = more
        environment = dict(os.environ if env is None else env)
        if shell or preexec or executable or keep or not _may_be_forked(args, environment, known):
            as_ever(self, args, executable, preexec, close, keep, cwd, env, *more)
            return
        call = {
            "words": [str(word) for word in args],
            "environment": environment,
            "directory": str(cwd or os.getcwd()),
            "session": rest[5],
        }
        streams = [own if given == -1 else given for own, given in enumerate((read, write, error))]
        ctypes.CDLL(None).prctl(SET_SUBREAPER, 1, 0, 0, 0)
        socket.send_fds(server, [json.dumps(call).encode()], streams)
        answer = server.recv(64)
        ctypes.CDLL(None).prctl(SET_SUBREAPER, 0, 0, 0, 0)
        if not answer:
            raise OSError("the server of forked processes has ended")
        self.pid = int(answer)
        self._child_created = True
        self._close_pipe_fds(read, p2c, c2p, write, err, error)

    subprocess.Popen._execute_child = execute


def _may_be_forked(words: Any, environment: Mapping[str, str], known: Mapping[str, str]) -> bool:
    if not isinstance(words, list | tuple) or words[0] != sys.executable:
        return False
    options = [word for word in words[1:] if word != "-u"]
    if not options or (str(options[0]).startswith("-") and options[0] not in ("-m", "-c")):
        return False
    changed = [name for name in environment.keys() | known.keys() if environment.get(name) != known.get(name)]
    return not any(AT_IMPORT.fullmatch(name) for name in changed)


def serve(calls: socket.socket) -> dict[str, Any]:
    """Fork a process for each call; returns in those processes only, what they are to run."""
    while True:
        message, streams, _flags, _address = socket.recv_fds(calls, MOST, 3)
        if not message:
            os._exit(0)
        between = os.fork()
        if between:
            os.waitpid(between, 0)
            for stream in streams:
                os.close(stream)
            continue
        between = os.getpid()
        if os.fork():
            os._exit(0)
        while os.getppid() == between:  # then the caller takes its place
            time.sleep(0.0005)
        call: dict[str, Any] = json.loads(message)
        _show(call["words"], [f"{name}={value}" for name, value in call["environment"].items()])
        if call["session"]:
            os.setsid()
        for own, stream in enumerate(streams):
            os.dup2(stream, own)
        calls.send(str(os.getpid()).encode())
        os.closerange(3, 1024)
        return call


def serve_below() -> dict[str, Any] | None:
    """Have the Python processes that this one starts forked too, by a copy of this one as it is; returns in those."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
        _install(ours, dict(os.environ))
        return None
    ours.close()
    _show([__file__], [])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the group's, of which this one is
    nowhere = os.open(os.devnull, os.O_RDWR)
    for own in range(3):
        os.dup2(nowhere, own)
    return serve(theirs)


def begin(call: Mapping[str, Any]) -> list[str]:
    """Make this process one that Python has just started with the call's words; returns the module's or script's."""
    import numpy
    import torch

    words, environment = call["words"], call["environment"]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(call["directory"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.orig_argv = list(words)
    unbuffered = words[1] == "-u"
    rest = words[1 + unbuffered :]
    at_once = unbuffered or bool(environment.get("PYTHONUNBUFFERED"))
    for name, own, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        first = getattr(sys, name)
        made = os.fdopen(own, mode, encoding=first.encoding, errors=first.errors, closefd=False)
        if mode == "w":
            made.reconfigure(write_through=at_once, line_buffering=name == "stderr" and not at_once)
        setattr(sys, name, made)
        setattr(sys, f"__{name}__", made)
    own = os.getcwd() if rest[0] in ("-m", "-c") else os.path.dirname(os.path.abspath(rest[0]))
    given = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [own, *given, *PATH]
    sys.modules["__main__"] = ModuleType("__main__")
    importlib.invalidate_caches()
    sys.modules.pop("sitecustomize", None)
    if any(os.path.isfile(os.path.join(place, "sitecustomize.py")) for place in sys.path):
        importlib.import_module("sitecustomize")
    torch._dynamo.config.disable = environment.get("TORCH_COMPILE_DISABLE") == "1"  # as it reads it at its import
    # gomp has read its variable; a process that is forked after it has made threads hangs, and this one has made none.
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    numpy.random.seed()
    return rest


def _show(*shown: Sequence[str]) -> None:
    """Let /proc show this command line and these variables: which launch a process is part of is read there."""
    with open("/proc/self/stat", encoding="utf-8") as file:
        places = [int(word) for word in file.read().rpartition(")")[2].split()[45:49]]
    for words, start, end in zip(shown, places[::2], places[1::2], strict=True):
        text = b"".join(word.encode() + b"\0" for word in words)
        assert len(text) < end - start
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def leave_what_is_shared() -> None:
    """Have this process end without taking apart what it shares with its server, which costs half a second of copying.

    Exit functions, threads and modules that it has imported itself end as ever, and Python is finalised; the modules of
    `IMPORTED` are kept until then, and torch's destructors in C++, which come after it, are left out.
    """
    kept = {name: module for name, module in sys.modules.items() if name not in ("__main__", "builtins", "sys")}
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))

    def leave() -> None:
        for name, module in kept.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        libc = ctypes.CDLL(None)
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)

    LAST.append(leave)


def start(words: list[str]) -> None:
    """Run the module, the code or the script as `__main__`."""
    if words[0] == "-m":
        sys.argv[:] = ["-m", *words[2:]]
        runpy._run_module_as_main(words[1])
        return
    script = sys.modules["__main__"]
    if words[0] == "-c":
        sys.argv[:] = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), script.__dict__)
        return
    sys.argv[:] = words
    script.__dict__.update(__file__=words[0], __builtins__=__builtins__)
    with open(words[0], "rb") as file:
        exec(compile(file.read(), words[0], "exec"), script.__dict__)


if __name__ == "__main__":
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    PATH = sys.path[1 + len(given) :]
    LAST: list[Callable[[], None]] = []
    atexit.register(lambda: [end() for end in LAST])  # the first one registered is the last one called
    noisy = logging.getLogger("bitsandbytes.backends.cpu.ops")
    noisy.setLevel(logging.ERROR)  # it misses a kernel, which no test is about
    for name in IMPORTED:
        importlib.import_module(name)
    noisy.setLevel(logging.NOTSET)
    # Which distribution has which module: trl asks when it is imported, a fifth of a second, the same for all.
    metadata.packages_distributions = functools.cache(metadata.packages_distributions)
    metadata.packages_distributions()
    # And transformers which tensors of a checkpoint have other names in its models: of a rank's second a tenth.
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
    leave_what_is_shared()
    gc.collect()
    gc.freeze()
    asked: dict[str, Any] | None = serve(socket.socket(fileno=int(sys.argv[1])))
    while asked:
        mine = asked
        asked = None if "LOCAL_RANK" in mine["environment"] else serve_below()
    start(begin(mine))
