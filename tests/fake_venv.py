"""An environment whose `vllm serve` is a small HTTP server: the testbed's own work without vLLM."""

from __future__ import annotations

import sys
from pathlib import Path

from jaxroute.testbed.engine.step_hold import COLUMNS
from jaxroute.testbed.install import READY

SERVER = """
import http.server, os, signal, subprocess, sys, time

arguments = dict(zip(sys.argv[1:], sys.argv[2:]))
port = int(arguments["--port"])
BEHAVIOUR


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST = answer

    def log_message(self, *rest):
        pass


child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
trace = open(os.environ["JAXROUTE_TRACE"], "w")
trace.write("TRACE_HEADER\\n")
trace.close()
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
DIES = 'print("ValueError: the cause"); print("the end"); sys.exit(3)'
NEVER_READY = "time.sleep(600)"
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def fake_venv(folder: Path, behaviour: str = "") -> Path:
    """Makes the environment; `behaviour` is Python that runs before the server does."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    script = SERVER.replace("BEHAVIOUR", behaviour).replace("TRACE_HEADER", ",".join(COLUMNS))
    (folder / "bin" / "vllm").write_text(script)
    (folder / READY).touch()
    return folder


def children(logs: list[Path]) -> list[int]:
    """Process ids of what the servers have started."""
    return [int(log.read_text().split("child ")[1].split()[0]) for log in logs]


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
