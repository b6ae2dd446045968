"""One round of atheris, in a process of its own, with limits of time and memory, and a line of figures at its end.

What is fuzzed, and by which oracle, is in fuzz_config.py and fuzz_safetensors.py.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

EXTRA_MEGABYTES = 200  # beyond what the libraries take
SLOWEST_SECONDS = 20  # of one input


def main(name: str, script: str, begin: Callable[[Any], Callable[[bytes], None]]) -> None:
    """Read the options and run a round.

    Args:
        name: Name of what is fuzzed.
        script: Path of the script, which is started again as the worker.
        begin: Given atheris, makes the function that is called with each input.
    """
    parser = argparse.ArgumentParser(description=name)
    parser.add_argument("--seconds", type=int, default=60, help="time to run")
    parser.add_argument("--runs", type=int, default=-1, help="number of inputs; by default as many as the time allows")
    parser.add_argument("--seed", type=int, default=1, help="seed of the inputs, 1 or more")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options, begin)
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, os.path.abspath(script), "--worker", "--seconds", str(options.seconds)]
        command += ["--runs", str(options.runs), "--seed", str(options.seed)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    figures = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stderr))
    baseline = re.search(r"baseline: (\d+) MB", done.stdout)
    if done.returncode or not figures or not baseline:
        sys.stderr.write(done.stdout + done.stderr[-20000:])
        raise SystemExit(f"{name}: failed with code {done.returncode}, seed {options.seed}")
    edges = re.findall(r"cov: (\d+)", done.stderr)
    refused, whole = re.findall(r"refused: (\d+), whole: (\d+)", done.stdout)[-1]
    sys.stdout.write(
        f"{name}: {figures['number_of_executed_units']} executions ({refused} refused, {whole} whole), "
        f"{(edges or ['no'])[-1]} edges, {figures['new_units_added']} inputs kept, slowest "
        f"{figures['slowest_unit_time_sec']} s, peak {figures['peak_rss_mb']} MB of which {baseline[1]} before, "
        f"seed {options.seed}: no failure\n"
    )


def _work(options: Any, begin: Callable[[Any], Callable[[bytes], None]]) -> None:
    import atheris
    import psutil

    test_one = begin(atheris)
    for length in (0, 7, 64):  # so that what is imported and made once is counted before
        test_one(bytes(length))
    megabytes = psutil.Process().memory_info().rss // 2**20
    print(f"baseline: {megabytes} MB", flush=True)  # noqa: T201
    limits = [f"-rss_limit_mb={megabytes + EXTRA_MEGABYTES}", f"-timeout={SLOWEST_SECONDS}"]
    amount = [f"-max_total_time={options.seconds}", f"-runs={options.runs}", f"-seed={options.seed}"]
    atheris.Setup([sys.argv[0], *limits, *amount, "-print_final_stats=1", "-max_len=256", "-len_control=0"], test_one)
    atheris.Fuzz()


def count(refused: list[bool], is_refused: bool) -> None:
    """Note an outcome; every hundredth time print the sums, since atheris ends the process without a word."""
    refused.append(is_refused)
    if len(refused) % 100 == 3:
        print(f"refused: {sum(refused)}, whole: {len(refused) - sum(refused)}", flush=True)  # noqa: T201
