"A command as a process of its own that begins with everything imported: seconds less than a new Python."
import math, os, signal, subprocess, sys, time, traceback
from concurrent.futures import ThreadPoolExecutor

import torch
import enas_nb.all, enas_nb.experiment

class Forked:
    "`f(argv)` in a copy of this process, with a session, signals and pipes of its own. Used like `subprocess.Popen`."
    def __init__(self, f, argv, **env):
        assert not torch.cuda.is_initialized(), 'a copy of a process that uses a GPU cannot use it'
        out, err = os.pipe(), os.pipe()
        sys.stdout.flush(), sys.stderr.flush()
        self.returncode, self.pid = None, os.fork()
        if not self.pid: _child(f, argv, env, out[1], err[1])
        os.close(out[1]), os.close(err[1])
        self.stdout, self.stderr = os.fdopen(out[0]), os.fdopen(err[0])

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid: self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=None):
        end = math.inf if timeout is None else time.monotonic()+timeout
        while self.poll() is None:
            if time.monotonic()>end: raise subprocess.TimeoutExpired('a forked command', timeout)
            time.sleep(.005)
        return self.returncode

    def communicate(self, timeout=None):
        with ThreadPoolExecutor(2) as pool:
            said = [pool.submit(o.read) for o in (self.stdout, self.stderr)]
            try: self.wait(timeout)
            except subprocess.TimeoutExpired: os.killpg(self.pid, signal.SIGKILL); raise # its children hold the pipes
            finally: out = [o.result() for o in said]
        self.stdout.close(), self.stderr.close()
        return out

    def send_signal(self, number):
        if self.poll() is None: os.kill(self.pid, number)
    def kill(self): self.send_signal(signal.SIGKILL)

def _child(f, argv, env, out, err):
    "What a new Python would do, but for the imports. Never returns."
    status = 1
    try:
        os.setsid()
        for o in (signal.SIGTERM, signal.SIGHUP): signal.signal(o, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        null = os.open(os.devnull, os.O_RDONLY)
        for k,o in enumerate((null, out, err)): os.dup2(o, k)
        os.closerange(3, 65536)
        sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), open(1, 'w', closefd=False), open(2, 'w', 1, errors='backslashreplace', closefd=False)
        os.environ.update(env)
        status = f(argv)
    except SystemExit as e: status = e.code
    except BaseException: traceback.print_exc()
    finally:
        try:
            if not isinstance(status, int | None): print(status, file=sys.stderr); status = 1
            sys.stdout.flush(), sys.stderr.flush()
        finally: os._exit(status or 0)
