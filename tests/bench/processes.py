"""Processes of a run: started on chosen cores, asked what they cost, ended by their own id."""

import os
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


class Failure(Exception):
    """What went wrong, in one line."""


def expect(condition, why):
    if not condition:
        raise Failure(why)


def free_port():
    """A port below the range that outgoing connections take theirs from, so that it is still free a moment later."""
    for port in range(20000, 32000):
        if port not in free_port.given:
            free_port.given.add(port)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port
    raise Failure("no port is free between 20000 and 32000")


free_port.given = set()


def raise_file_limit():
    """As far as it goes; children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


SIGNALS = {signal.SIGINT, signal.SIGTERM}


class Process:
    """A program that runs on `cores` until it is stopped."""

    # All that were started: a signal can come between the start of one and the block that would stop it.
    started_ones = []

    def __init__(self, command, log, cores, environment=None):
        def on_its_cores():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            os.sched_setaffinity(0, cores)
            # So that a terminal's Ctrl-C reaches the driver alone, which ends its processes in order.
            os.setpgid(0, 0)

        self.name, self.log = Path(command[0]).name, log
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            with open(log, "ab") as out:
                self.started = time.monotonic()
                self.process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    preexec_fn=on_its_cores,
                )
            self.started_ones.append(self)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    @property
    def has_ended(self):
        return self.process.poll() is not None

    def pids(self):
        """The process and its children; nothing here has grandchildren."""
        own = self.process.pid
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        return [own, *map(int, children)]

    def cpu(self):
        """Seconds of CPU time so far, in user space and in the kernel."""
        return sum(cpu_of(pid) for pid in self.pids())

    def rss(self):
        """MiB of memory that are resident. What a parent and its worker share is counted once."""
        whole, *others = sorted((memory_of(pid) for pid in self.pids()), reverse=True)
        return (whole[0] + sum(private for _, private in others)) / 1024

    def stop(self):
        if self.has_ended:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def stop_all():
    """The last thing that a run does; nothing disturbs it."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    for process in Process.started_ones:
        process.stop()


def cpu_of(pid):
    # The name, in brackets, may hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def memory_of(pid):
    """KiB that are resident, and those of them that are in no file and in no shared memory."""
    _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    return resident * PAGE_KIB, (resident - shared) * PAGE_KIB


def machine_busy():
    """Seconds of CPU time that the machine spent so far on anything, or that its host took away from it."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = (
        int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / TICK


def own_cpu(processes):
    """Seconds of CPU time of this run: the driver, the loads that have ended, and `processes`."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        time.process_time()
        + ended.ru_utime
        + ended.ru_stime
        + sum(process.cpu() for process in processes if not process.has_ended)
    )
