"""Times this library against its peers: the same shapes, in the same run, turn by turn.

Every contender runs in a process of its own, which is stopped while another has its turn: threads that spin between
products then cost nobody anything. A peer is compared with ours in alternating turns, and the ratio of a case is the
median over the turns, since memory bandwidth and clocks drift within a run. Ratios above 1 mean that ours is faster.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
PEERS = ("ggml", "onnx_matmulnbits", "openblas")  # modules of contenders/


class Missing(Exception):
    """The contender is not installed, or cannot do what was asked."""


class Died(Missing):
    """The contender's process ended without an answer."""


class Worker:
    """A contender's process, stopped except while it answers."""

    def __init__(self, module, library, verbose):
        environment = dict(os.environ, APL_FFI_LIBRARY=str(library))
        # Settings that choose an old kernel; without them OpenBLAS takes the best one for the processor.
        for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, HERE / "worker.py", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if verbose else subprocess.DEVNULL,
            env=environment,
            text=True,
        )

    def ask(self, **request):
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self.process.wait()
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            raise Died(f"its process died, {how} (--verbose shows its last words)")
        self.process.send_signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "missing" in answer:
            raise Missing(answer["missing"])
        return answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def arguments():
    everything = len(os.sched_getaffinity(0))
    numbers = lambda text: [int(n) for n in text.split(",")]
    shapes = lambda text: [tuple(map(int, s.split("x"))) for s in text.split(",")]
    words = lambda text: text.split(",")
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--library", type=pathlib.Path, default=HERE.parents[1] / "target/release/libapl_ffi.so")
    p.add_argument("--peers", type=words, default=PEERS, help=f"default: {','.join(PEERS)}")
    p.add_argument("--bits", type=numbers, default=[8, 4, 2, 1])
    p.add_argument("--n", type=numbers, default=[1, 8, 512], help="vectors at once")
    p.add_argument("--shape", type=shapes, default=[(4096, 4096)], help="rows x columns, e.g. 4096x4096,11008x4096")
    p.add_argument("--group", type=int, default=32, help="columns a scale of ours and of ONNX Runtime covers")
    p.add_argument("--threads", type=numbers, default=sorted({1, everything}))
    p.add_argument("--from", type=words, default=["memory", "cache"], dest="places")
    p.add_argument("--rotate-mib", type=int, default=1024, help="more than the last-level cache")
    p.add_argument("--rounds", type=int, default=7, help="pairs of turns a case")
    p.add_argument("--turn", type=float, default=0.025, help="seconds of a turn; at least one product")
    p.add_argument("--json", type=pathlib.Path, default=HERE.parents[1] / "target/bench/peers.json")
    p.add_argument("--verbose", action="store_true", help="show what the contenders print")
    return p.parse_args()


def compare(ours, peer, case, args):
    """One case of both: the medians and the median ratio."""
    made = [worker.ask(configure=case) for worker in (ours, peer)]
    seconds, ratios = ([], []), []
    for _ in range(args.rounds):
        turn = []
        for worker, times in zip((ours, peer), seconds):
            fresh = worker.ask(turn=args.turn)["times"]
            times += fresh
            turn.append(statistics.median(fresh))
        ratios.append(turn[1] / turn[0])
    result = {"ratio": statistics.median(ratios)}
    for name, about, times in zip(("ours", "peer"), made, seconds):
        result[name] = dict(about, us=statistics.median(times) * 1e6)
    return result


def rates(side, rows, cols, n):
    """GB/s of weight bytes and Gop/s of one side."""
    return side["bytes"] / side["us"] / 1e3, 2 * rows * cols * n / side["us"] / 1e3


SIDE = f"{'us':>9} {'GB/s':>6} {'Gop/s':>7} {'error':>6}"
HEAD = (
    f"{'bits':>4} {'ours':<5}{'peer':<26} {'shape':>10} {'n':>4} {'from':<6} {'thr':>3} | {SIDE} | {SIDE} | ratio\n"
    f"{'':>63}| {'ours':<31} | {'peer':<31} | peer / ours"
)


def show(r):
    def side(name):
        gbs, gops = rates(r[name], r["rows"], r["cols"], r["n"])
        return f"{r[name]['us']:9.1f} {gbs:6.1f} {gops:7.1f} {r[name]['error']:6.4f}"

    shape = f"{r['rows']}x{r['cols']}"
    print(
        f"{r['bits']:>4} {r['mode']:<5}{r['label']:<26} {shape:>10} {r['n']:>4} {r['from']:<6} {r['threads']:>3} "
        f"| {side('ours')} | {side('peer')} | {r['ratio']:5.2f}",
        flush=True,
    )


def run(args):
    present = {}  # module: the variants it has at each width
    for module in args.peers:
        try:
            with Worker(module, args.library, args.verbose) as worker:
                present[module] = {bits: worker.ask(variants=bits)["variants"] for bits in args.bits}
        except Missing as why:
            print(f"{module} is left out: {why}")

    # Quantised peers take int8 activations; the float32 one is compared with products that take floats as they are.
    modes = {"int8": [m for m in present if m != "openblas"], "f32": [m for m in present if m == "openblas"]}
    results = []
    for bits in args.bits:
        for rows, cols in args.shape:
            for mode, modules in modes.items():
                common = {"bits": bits, "rows": rows, "cols": cols, "group": args.group, "rotate": args.rotate_mib << 20}
                # Copies of ours take long to make: they are kept for all the peers, a process for each thread count.
                with contextlib.ExitStack() as stack:
                    ours = {}
                    for threads in args.threads if modules else []:
                        ours[threads] = stack.enter_context(Worker("ours", args.library, args.verbose))
                        ours[threads].ask(make=dict(common, variant=mode))
                    for module in modules:
                        for variant in present[module][bits]:
                            results += variant_cases(args, ours, module, variant, mode, common)
    return results


def variant_cases(args, ours, module, variant, mode, common):
    """Every case of one variant of one peer at one shape, printed as they come."""
    label = f"{module.removesuffix('_matmulnbits')} {variant}"
    results = []
    for n in args.n:
        # A fresh process for each n: a peer that dies of one loses no other.
        try:
            with Worker(module, args.library, args.verbose) as peer:
                peer.ask(make=dict(common, variant=variant))
                for threads in args.threads:
                    for place in args.places:
                        case = {"n": n, "threads": threads, "place": place}
                        r = compare(ours[threads], peer, case, args)
                        r |= common | {"n": n, "threads": threads, "mode": mode, "label": label, "from": place}
                        show(r)
                        results.append(r)
        except Died as why:
            print(f"{label}, {common['bits']} bits, n = {n} is left out: {why}", flush=True)
        except Missing as why:
            print(f"{label}, {common['bits']} bits is left out: {why}", flush=True)
            break
    return results


def summary(results):
    """The best peer of each case, and how ours compares with it."""
    key = lambda r: (r["mode"] == "f32", -r["bits"], r["rows"], r["cols"], r["n"], r["threads"], r["from"])
    groups = {}
    for r in results:
        groups.setdefault(key(r), []).append(r)
    best = [min(group, key=lambda r: r["ratio"]) for _, group in sorted(groups.items())]
    print("\nagainst the best peer of each case")
    print(f"{'bits':>4} {'ours':<5} {'shape':>10} {'n':>4} {'from':<6} {'thr':>3}  {'ratio':>5}  best peer")
    for r in best:
        shape = f"{r['rows']}x{r['cols']}"
        print(
            f"{r['bits']:>4} {r['mode']:<5} {shape:>10} {r['n']:>4} {r['from']:<6} {r['threads']:>3}  "
            f"{r['ratio']:5.2f}  {r['label']}"
        )
    return best


def main():
    args = arguments()
    if not args.library.exists():
        sys.exit(f"{args.library} is not there: cargo build --release, or --library")
    load = os.getloadavg()[0]
    if load > 0.5:
        print(
            f"the load of this machine is {load:.1f}: where others want the same cores, threads that wait for each "
            "other by spinning (all the peers', and ours) can be slower a thousand times; time on a quiet one",
            file=sys.stderr,
        )
    print(HEAD)
    results = run(args)
    best = summary(results)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"load_at_start": load, "cases": results, "best": best}, indent=1) + "\n")
    print(f"written: {args.json}")


main()
